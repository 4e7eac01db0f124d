"""GateService over a real socket, and what it says about a suite."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.config.gate import GateConfig
from opsd.daemon.gate.check import ASSUMED_DISCORDANCE, SuiteChecker
from opsd.daemon.gate.registry import SuiteRegistry
from opsd.daemon.gate.service import GateService
from opsd.daemon.gate.suites import Suite
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.pairs import SuiteItem, Verdict, VerdictKind
from opsd.daemon.types.suites import CachedAnswer, OverlapReport
from opsd.v1 import admin_pb2
from opsd.v1 import gate_pb2 as pb
from opsd.v1.gate_pb2_grpc import GateServiceStub, add_GateServiceServicer_to_server

CONDITIONS = ("c" * 64, "d" * 64)


class Equality:
    """Takes a text for right that is the reference; "broken" cannot be judged."""

    async def verify(
        self, verifier: str, reference: str, text: str, *, private: bool = False
    ) -> Verdict:
        if reference == "broken":
            return Verdict(VerdictKind.ERROR, verifier, "the reference is not a number")
        kind = VerdictKind.PASS if text == reference else VerdictKind.FAIL
        return Verdict(kind, verifier, f"{text} and {reference}")


class Overlap:
    def find_overlaps(self, suite: str, items: Sequence[SuiteItem]) -> OverlapReport:
        return OverlapReport(1, 1, 0, ("pair-1", "pair-2"))

    def quarantine_overlaps(
        self, suite: str, items: Sequence[SuiteItem], actor: str
    ) -> OverlapReport:
        return self.find_overlaps(suite, items)


@dataclass
class Door:
    stub: Any  # the generated types are those of blocking calls
    registry: SuiteRegistry
    store: Any
    near: list[tuple[int, int]] = field(default_factory=list)

    async def add(self, data: bytes, **settings: Any) -> pb.AddSuiteResponse:
        async def requests() -> AsyncIterator[pb.AddSuiteRequest]:
            yield pb.AddSuiteRequest(upload=an_upload(**settings))
            for start in range(0, len(data), 100):
                yield pb.AddSuiteRequest(content=data[start : start + 100])

        call = self.stub.AddSuite(requests(), metadata=(("x-opsd-actor", "ana"),))
        return cast(pb.AddSuiteResponse, await call)

    async def check(self, data: bytes = b"", **options: Any) -> pb.SuiteCheck:
        async def requests() -> AsyncIterator[pb.CheckSuiteRequest]:
            yield pb.CheckSuiteRequest(options=pb.SuiteCheckOptions(**options))
            yield pb.CheckSuiteRequest(content=data)

        return cast(pb.SuiteCheck, await self.stub.CheckSuite(requests()))


def an_upload(name: str = "sums", role: str = "TARGET", **settings: Any) -> pb.SuiteUpload:
    return pb.SuiteUpload(
        settings=pb.SuiteSettings(
            name=name, role=admin_pb2.SuiteRole.Value(f"SUITE_ROLE_{role}"), **settings
        ),
        file_name="sent.jsonl",
        reason="because",
    )


def text(count: int, *, first: int = 0, **more: Any) -> bytes:
    records = [
        {"id": f"i{n}", "prompt": f"{n}+1", "verifier": "numeric", "reference": f"{n + 1}"}
        | {key: value(n) if callable(value) else value for key, value in more.items()}
        for n in range(first, first + count)
    ]
    return "\n".join(map(json.dumps, records)).encode()


@pytest.fixture
def registry_store(tmp_path: Path) -> Iterator[Any]:
    store = open_store(sqlite_url(tmp_path))
    yield store
    store.close()


@pytest.fixture
async def door(registry_store: Any, tmp_path: Path) -> AsyncIterator[Door]:
    registry = SuiteRegistry(
        registry_store,
        state_dir=tmp_path,
        verifiers=["exact", "numeric", "python"],
        overlap=Overlap(),
    )
    registry.load([])
    near: list[tuple[int, int]] = []

    def conditions(suite: Suite) -> tuple[str, str]:
        return CONDITIONS

    checker = SuiteChecker(
        registry,
        Equality(),
        registry_store,
        GateConfig(),
        conditions=conditions,
        near_duplicates=lambda texts: near,
    )
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    add_GateServiceServicer_to_server(GateService(registry, checker), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Door(GateServiceStub(channel), registry, registry_store, near)
    await server.stop(None)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


async def test_a_suite_is_added_listed_shown_and_removed(door: Door) -> None:
    added = await door.add(text(40), margin=0.01)
    assert (added.suite.version, added.suite.num_items, added.suite.actor) == ("1", 40, "ana")
    assert (added.num_quarantined_exact, added.num_quarantined_near) == (1, 1)
    assert list(added.quarantined_pair_ids) == ["pair-1", "pair-2"]
    (listed,) = (await door.stub.ListSuites(pb.ListSuitesRequest())).suites
    assert listed == added.suite
    shown = await door.stub.GetSuite(pb.GetSuiteRequest(name="sums", include_items=True))
    assert [item.prompt for item in shown.items] == [f"{n}+1" for n in range(40)]
    assert not (await door.stub.GetSuite(pb.GetSuiteRequest(name="sums"))).items
    assert (await refused(door.stub.RemoveSuite(pb.RemoveSuiteRequest(name="sums"))))[0] is (
        grpc.StatusCode.INVALID_ARGUMENT
    )
    gone = await door.stub.RemoveSuite(pb.RemoveSuiteRequest(name="sums", reason="old"))
    assert gone.state == pb.SUITE_STATE_RETIRED
    assert not (await door.stub.ListSuites(pb.ListSuitesRequest())).suites
    assert len((await door.stub.ListSuites(pb.ListSuitesRequest(all=True))).suites) == 1


async def test_a_sealed_suite_never_sends_an_item(door: Door) -> None:
    secrets = [f"{n}+1" for n in range(40)]
    added = await door.add(text(40, stratum=lambda n: f"s{n % 2}"), sealed=True, budget=3)
    assert added.num_quarantined_near == 1
    assert not added.quarantined_pair_ids
    code, said = await refused(
        door.stub.GetSuite(pb.GetSuiteRequest(name="sums", include_items=True))
    )
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "sealed" in said
    door.near.append((0, 1))
    for adapter in ("a", "b"):
        for n in range(40):
            key = CachedAnswer(adapter, CONDITIONS[0], f"i{n}", 0)
            door.store.save_answer(key, AnswerRecord(adapter == "a", 1), run_id="r")
    check = await door.check(name="sums")
    replies = [
        added,
        await door.stub.GetSuite(pb.GetSuiteRequest(name="sums")),
        await door.stub.ListSuites(pb.ListSuitesRequest(all=True)),
        check,
    ]
    assert not check.strata
    # Nor what adapters did on it.
    assert check.discordance_source == "assumed"
    for reply in replies:
        sent = str(reply)
        assert not any(f"'{secret}'" in sent or f'"{secret}"' in sent for secret in secrets)
        assert "i0" not in sent
        assert "s0" not in sent
    assert any("1 pairs of problems are nearly the same: give" in w for w in check.warnings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "No"}, "name: 'No' is not allowed"),
        ({"role": "UNSPECIFIED"}, "role: is neither"),
        ({"margin": 2.0}, "margin: 2 is no fraction"),
        ({"margin": float("nan")}, "margin: nan is no fraction"),
        ({"sealed": True}, "budget: a sealed suite needs one"),
        ({"budget": 3}, "only a sealed suite has one"),
        ({"samples": 300}, "samples: 300 is more than 256"),
    ],
)
async def test_bad_settings_are_named(door: Door, settings: dict[str, Any], said: str) -> None:
    code, details = await refused(door.add(text(3), **settings))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert said in details


async def test_too_much_content_is_refused(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsd.daemon.gate.service.MAX_CONTENT_BYTES", 1000)
    code, details = await refused(door.add(text(40)))
    assert (code, "make several suites" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


async def test_a_check_says_what_a_target_can_show(door: Door) -> None:
    check = await door.check(
        text(400), upload=an_upload(margin=0.0), differences=[0.05, 0.1], gate_number=2
    )
    assert (check.num_items, check.effective_items, check.gate_number) == (400, 400, 2)
    assert check.gain_level == pytest.approx(0.05 * 6 / 3.14159265**2 / 4)
    assert (check.discordance, check.discordance_source) == (ASSUMED_DISCORDANCE, "assumed")
    assert 0.07 < check.detectable_gain < 0.11
    needed = {round(one.difference, 3): one.num_items for one in check.needed}
    assert needed[0.05] > 3.5 * needed[0.1] > 700
    assert not check.errors
    assert list(check.warnings) == [
        "2 stored pairs overlap it (1 exactly, 1 nearly; 0 are in quarantine): adding it puts the "
        "rest there"
    ]
    assert not door.registry.active().suites


async def test_a_check_warns_of_what_cannot_be_told(door: Door) -> None:
    data = text(60, stratum=lambda n: "rare" if n < 5 else "plain", cluster=lambda n: f"c{n // 6}")
    check = await door.check(
        data, upload=an_upload(role="GUARD", margin=0.02, stratum_margin=0.05), discordance=0.1
    )
    assert check.num_clusters == 10
    assert check.effective_items == pytest.approx(10)
    assert (check.discordance, check.discordance_source) == (0.1, "given")
    said = "\n".join(check.warnings)
    assert "1 strata have fewer than 30 items: 'rare' (5)" in said
    assert "one stratum ('plain') has 92 % of the items" in said
    assert "a loss of more than 2 points is ruled out less than 4 times in 5" in said
    assert "2 of 2 strata are too small to rule out a loss of 5 points" in said
    assert {one.stratum: one.num_items for one in check.strata} == {"plain": 55, "rare": 5}


async def test_a_check_tries_the_references_and_looks_for_repetition(door: Door) -> None:
    door.near.append((0, 2))
    data = text(
        4,
        reference=lambda n: "broken" if n == 0 else f"{n + 1}",
        solution=lambda n: "so 3" if n == 1 else "",
        verifier=lambda n: "python" if n == 3 else "numeric",
    )
    said = (await door.check(data, upload=an_upload())).warnings
    assert "'i0' and 'i2'" in said[-4]
    assert said[-3].startswith("the verifier cannot judge 1 items: 'i0' (the reference is not a")
    assert "reference of 1 items for right: 'i1' (so 3 and 2)" in said[-2]


async def test_a_check_names_what_add_would_refuse(door: Door) -> None:
    await door.add(text(5))
    check = await door.check(text(5), upload=an_upload("other"))
    assert len(check.errors) == 1
    assert "that of item 'i0'" in check.errors[0]
    # A version that would replace it may repeat it.
    assert not (await door.check(text(6), upload=an_upload("sums"))).errors
    code, _ = await refused(door.check(b"{", upload=an_upload()))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    code, details = await refused(door.check(name="none"))
    assert (code, "no suite 'none'" in details) == (grpc.StatusCode.NOT_FOUND, True)
    code, details = await refused(door.check(b"x"))
    assert "neither a name nor an upload" in details


async def test_discordance_is_measured_where_two_adapters_answered(door: Door) -> None:
    await door.add(text(40))
    assert (await door.check(name="sums")).discordance_source == "assumed"
    for adapter in ("a", "b"):
        for n in range(40):
            key = CachedAnswer(adapter, CONDITIONS[1], f"i{n}", 0)
            record = AnswerRecord(adapter == "a" or n >= 8, 1)
            door.store.save_answer(key, record, run_id="r")
    check = await door.check(name="sums")
    assert check.discordance_source == "measured"
    assert check.discordance == pytest.approx(8.5 / 41)
