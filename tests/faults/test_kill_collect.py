"""SIGKILL in the middle of a stream of pairs: what was acknowledged is there, nothing is twice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from os import environ
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest

from opsd.daemon.store.failpoints import VARIABLE
from opsd.daemon.store.sql import open_store
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

SERVER = Path(__file__).with_name("collect_server.py")
NUM_PAIRS = 300


@contextmanager
def serving(url: str, failpoint: str = "") -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    environment = dict(environ) | {VARIABLE: failpoint}
    with subprocess.Popen(
        [sys.executable, SERVER, url], stdout=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            assert line, "the server did not start"
            yield process, int(line)
        finally:
            process.kill()


def make_pairs() -> list[pb.PairInput]:
    return [
        pb.PairInput(
            id=str(uuid4()),
            prompt=f"What is {number} + 1?",
            solution=f"Answer: {number + 1}",
            verifier="numeric",
            reference=str(number + 1),
        )
        for number in range(NUM_PAIRS)
    ]


async def requests(pairs: list[pb.PairInput]) -> AsyncIterator[pb.SubmitPairsRequest]:
    for pair in pairs:
        yield pb.SubmitPairsRequest(pair=pair)


async def submit_until_it_dies(
    port: int, pairs: list[pb.PairInput], process: subprocess.Popen[bytes], kill_after: int | None
) -> list[pb.PairResult]:
    acknowledged: list[pb.PairResult] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.CollectionServiceStub(channel)

        async def submit() -> None:
            async for result in stub.SubmitPairsAcked(requests(pairs)):
                acknowledged.append(result)
                if len(acknowledged) == kill_after:
                    process.kill()

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await submit()
        # INTERNAL: the client's own library, where the connection broke while it was sending.
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
        assert process.wait(10) == -signal.SIGKILL
    return acknowledged


async def submit_all(port: int, pairs: list[pb.PairInput]) -> list[pb.PairResult]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = pb_grpc.CollectionServiceStub(channel)
        return [result async for result in stub.SubmitPairsAcked(requests(pairs))]


def stored_ids(url: str) -> list[str]:
    store = open_store(url)
    ids = [pair.input.id for pair in store.list_pairs(limit=10 * NUM_PAIRS).items]
    store.close()
    return ids


@pytest.mark.parametrize(
    ("failpoint", "kill_after"),
    [("", 1), ("", 100), ("pair-before-commit:3", None), ("pair-after-commit:3", None)],
)
async def test_every_acknowledged_pair_survives_once(
    store_url: str, failpoint: str, kill_after: int | None
) -> None:
    pairs = make_pairs()
    with serving(store_url, failpoint) as (process, port):
        acknowledged = await submit_until_it_dies(port, pairs, process, kill_after)
        assert await asyncio.to_thread(process.wait) == -9
    assert len(acknowledged) < NUM_PAIRS
    before = stored_ids(store_url)
    assert len(set(before)) == len(before)
    assert {result.id for result in acknowledged} <= set(before)
    assert set(before) <= {pair.id for pair in pairs}

    with serving(store_url) as (_process, port):
        results = await submit_all(port, pairs)
    assert [result.id for result in results] == [pair.id for pair in pairs]
    assert {result.status for result in results} == {pb.PAIR_STATUS_VERIFIED}
    assert {result.id for result in results if result.already_stored} == set(before)
    after = stored_ids(store_url)
    assert sorted(after) == sorted(pair.id for pair in pairs)
