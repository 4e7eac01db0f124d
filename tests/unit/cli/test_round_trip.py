"""Pairs that leave one daemon with `export` arrive in another with `import` as they were."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from source_world import World, make_world

from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.cli.main import run
from opsd.daemon.collect.source_service import SourceService
from opsd.daemon.collect.sources.answers import AnswerIntake
from opsd.daemon.collect.sources.driver import SourceDriver
from opsd.daemon.collect.sources.problems import ProblemIntake
from opsd.daemon.types.pairs import Origin, PairInput
from opsd.v1 import collection_pb2_grpc as pb_grpc


@dataclass
class Ready:
    is_ready: bool = True


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[tuple[World, str]]:
    directory.mkdir()  # noqa: ASYNC240 - a test's own
    with make_world(directory) as world:
        collection = world.intake.inner
        problems = ProblemIntake(world.store, world.held_out, collection.intake)
        answers = AnswerIntake(
            world.store,
            collection.attempt,
            world.verifier,
            collection.intake,
            problems,
            collection.intake,
        )
        service = SourceService(
            world.store, answers, problems, SourceDriver([], world.store, Ready())
        )
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        pb_grpc.add_CollectionServiceServicer_to_server(collection, server)
        pb_grpc.add_SourceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield world, f"127.0.0.1:{port}"
        finally:
            await server.stop(0)


async def opsd(address: str, *arguments: str) -> int:
    return await asyncio.to_thread(run, ["--address", address, *arguments])


def kept(world: World) -> dict[str, Any]:
    """What must not change on the way."""
    return {
        stored.pair.input.id: (stored.pair.input, stored.pair.status, stored.pair.origin)
        for stored in world.store.pairs_after(0, limit=10_000)
    }


def lines(path: Path) -> dict[str, Any]:
    """By id, without who sent it and when; pairs of one stream are stored in any order."""
    found = [json.loads(line) for line in path.read_text().split("\n") if line]
    for record in found:
        del record["submitter"], record["created_unix_s"]
    return {record["id"]: record for record in found}


async def test_a_round_trip_loses_nothing(tmp_path: Path) -> None:
    odd = "Grüße \u2028 “quoted” \\n \\\\boxed{1} #### 7\n<<1+1=2>> \t \U0001f600"
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    async with serving(tmp_path / "a") as (world, address):
        for number, origin in enumerate(list(Origin) * 40):
            given = PairInput(
                id=str(uuid4()),
                prompt=f"{number}: {odd}",
                solution=f"{odd}\nAnswer: {number % 50}",
                verifier="numeric",
                reference=str(number % 7),
                source="a source, with commas",
                stratum="" if number % 2 else "easy",
            )
            await world.intake.submit(given, "ana", origin=origin)
        before = kept(world)
        assert {status for _, status, _ in before.values()} == {"verified", "unverified"}
        assert await opsd(address, "pairs", "export", str(first)) == 0
    async with serving(tmp_path / "b") as (world, address):
        assert await opsd(address, "pairs", "import", str(first), "--allow-unverified") == 0
        assert kept(world) == before
        assert await opsd(address, "pairs", "export", str(second)) == 0
    assert lines(first) == lines(second)


async def test_quarantined_pairs_do_not_come_back_by_way_of_a_file(tmp_path: Path) -> None:
    record = {
        "prompt": "2+2?",
        "solution": "Answer: 4",
        "verifier": "numeric",
        "reference": "4",
        "status": "quarantined",
    }
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(record) + "\n")
    async with serving(tmp_path / "a") as (world, address):
        assert await opsd(address, "pairs", "import", str(file)) == 6
        assert kept(world) == {}


async def test_an_unknown_origin_is_refused_by_the_daemon(tmp_path: Path) -> None:
    from opsd.v1 import collection_pb2 as pb

    given = pb.PairInput(
        id=str(uuid4()), prompt="2+2?", solution="4", verifier="numeric", reference="4"
    )
    async with serving(tmp_path / "a") as (world, address):
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = pb_grpc.CollectionServiceStub(channel)

            async def requests() -> AsyncIterator[pb.SubmitPairsRequest]:
                yield pb.SubmitPairsRequest(pair=given, origin="stolen")
                yield pb.SubmitPairsRequest(pair=given, origin="self_play")

            results = [result async for result in stub.SubmitPairsAcked(requests())]
        assert [result.status for result in results] == [
            pb.PAIR_STATUS_INVALID,
            pb.PAIR_STATUS_VERIFIED,
        ]
        assert "'stolen' is not known" in results[0].message
        assert len(kept(world)) == 1
