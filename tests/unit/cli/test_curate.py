"""pairs quarantine, release, purge, stats, verify-again: what is asked, sent and printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc

Opsd = Callable[..., Any]


@dataclass
class FakeCuration(collection_pb2_grpc.CurationServiceServicer):
    """Remembers what it was asked."""

    requests: list[Any] = field(default_factory=list)

    def _change(self, request: Any, context: Any) -> pb.ChangePairsResponse:
        kept = type(request)()
        kept.CopyFrom(request)
        self.requests.append(kept)
        response = pb.ChangePairsResponse(num_pairs=3, audit_id=0 if request.dry_run else 8)
        response.runs.add(
            run_id="run-1",
            state="rejected",
            num_pairs=2,
            adapters=["opsd-1"],
            shard_path="/runs/1/shard.jsonl",
            shard_exists=not getattr(request, "delete_shards", False),
        )
        response.runs.add(run_id="run-2", state="promoted", adapters=["opsd-2"], through="opsd-1")
        return response

    QuarantinePairs = ReleasePairs = PurgePairs = _change

    def ReverifyPairs(self, request: Any, context: Any) -> Iterator[pb.PairResult]:
        self.requests.append(request)
        yield pb.PairResult(id="p1", status=pb.PAIR_STATUS_VERIFIED)
        yield pb.PairResult(id="p2", status=pb.PAIR_STATUS_UNVERIFIED)
        yield pb.PairResult(id="p3", status=pb.PAIR_STATUS_VERIFIED)

    def GetPairStats(self, request: Any, context: Any) -> pb.PairStats:
        self.requests.append(request)
        stats = pb.PairStats(pairs_per_day=100, new_since_last_run=4)
        stats.total.verified = 7
        stats.by_submitter.add(name="ana", verified=7, size_bytes=3 << 20)
        stats.quotas.add(submitter="ana", pairs_today=6, bytes_today=10, pairs_stored=7)
        return stats


@dataclass
class Server:
    fake: FakeCuration
    address: str


@pytest.fixture
def curation() -> Iterator[Server]:
    server = grpc.server(ThreadPoolExecutor(4))
    fake = FakeCuration()
    collection_pb2_grpc.add_CurationServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Server(fake, f"127.0.0.1:{port}")
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("command", "done"),
    [("quarantine", "put into quarantine"), ("release", "released"), ("purge", "purged")],
)
def test_a_change_is_sent_and_said(opsd: Opsd, curation: Server, command: str, done: str) -> None:
    options = ("--submitter", "mallory", "--source", "web", "--reason", "poison", "--yes")
    result = opsd("pairs", command, "id-1", "id-2", *options, address=curation.address)
    assert result.code == 0
    (request,) = curation.fake.requests
    selector = pb.PairSelector(ids=["id-1", "id-2"], submitter="mallory", source="web")
    assert (request.selector, request.reason, request.dry_run) == (selector, "poison", False)
    assert request.actor
    assert f"3 pairs {done}" in result.out
    assert "opsd-1" in result.out
    assert "through opsd-1" in result.out
    assert "audit entry 8" in result.err


def test_ids_that_name_nothing_are_said(opsd: Opsd, curation: Server) -> None:
    named = ("id-1", "id-2", "id-3", "id-4", "id-4")
    result = opsd("pairs", "release", *named, "--reason", "r", "--yes", address=curation.address)
    assert result.code == 0
    assert "4 named: what is missing is not stored" in result.err
    result = opsd(
        "pairs", "release", *named[:3], "--reason", "r", "--yes", address=curation.address
    )
    assert "named" not in result.err


def test_without_a_person_a_change_needs_yes(opsd: Opsd, curation: Server) -> None:
    result = opsd(
        *("pairs", "purge", "--origin", "self_play", "--reason", "r"), address=curation.address
    )
    assert result.code == 2
    assert "nothing was changed" in result.err
    assert [request.dry_run for request in curation.fake.requests] == [True]


def test_a_person_is_asked_with_the_numbers(
    opsd: Opsd, curation: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def confirm(question: str, **options: Any) -> bool:
        asked.append(question)
        return len(asked) > 1

    monkeypatch.setattr("opsd.daemon.cli.curate.is_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", confirm)
    command = ("pairs", "purge", "--source", "leak", "--reason", "r", "--shards")
    declined = opsd(*command, address=curation.address)
    assert declined.code == 1
    assert asked == ["Purged: 3 pairs, trained on by 2 runs (2 adapters). Go on?"]
    assert all(request.dry_run for request in curation.fake.requests)
    agreed = opsd(*command, address=curation.address)
    assert agreed.code == 0
    assert curation.fake.requests[-1].delete_shards
    assert not curation.fake.requests[-1].dry_run
    assert "/runs/1/shard.jsonl (deleted)" in agreed.out


def test_a_dry_run_changes_nothing_and_says_so(opsd: Opsd, curation: Server) -> None:
    result = opsd(
        *("pairs", "quarantine", "id-1", "--reason", "r", "--dry-run"), address=curation.address
    )
    assert result.code == 0
    assert "3 pairs would be put into quarantine" in result.out
    assert [request.dry_run for request in curation.fake.requests] == [True]


@pytest.mark.parametrize(
    ("options", "said"),
    [((), "which pairs?"), (("--source", "s", "--reason", " "), "--reason is empty")],
)
def test_a_change_of_nothing_or_without_a_reason_is_not_sent(
    opsd: Opsd, curation: Server, options: tuple[str, ...], said: str
) -> None:
    arguments = options or ("--reason", "r")
    result = opsd("pairs", "purge", *arguments, "--yes", address=curation.address)
    assert result.code == 2
    assert said in result.err
    assert curation.fake.requests == []


def test_statistics(opsd: Opsd, curation: Server) -> None:
    result = opsd("pairs", "stats", "--submitter", "ana", address=curation.address)
    assert curation.fake.requests[0].selector == pb.PairSelector(submitter="ana")
    assert "6 of 100" in result.out
    assert "3.0 MiB" in result.out
    data = opsd("pairs", "stats", "-o", "json", address=curation.address).json
    assert data["by_submitter"][0]["name"] == "ana"


def test_verifying_again_counts_what_came_of_it(opsd: Opsd, curation: Server) -> None:
    result = opsd("pairs", "verify-again", "--failed", address=curation.address)
    (request,) = curation.fake.requests
    assert (request.status, request.failed_too) == (pb.PAIR_STATUS_UNVERIFIED, True)
    assert result.out == "3 verified again: now 1 unverified, 2 verified\n"
    lines = opsd("pairs", "verify-again", "-o", "json", address=curation.address).lines
    assert [line["id"] for line in lines] == ["p1", "p2", "p3"]


def test_a_list_is_filtered_by_who_and_how(opsd: Opsd, daemon: Any) -> None:
    opsd("pairs", "list", "--status", "quarantined", "--submitter", "ana", "--origin", "self_play")
    request = daemon.fake.last("ListPairs")
    assert request.status == pb.PAIR_STATUS_QUARANTINED
    assert (request.submitter, request.origin) == ("ana", "self_play")
