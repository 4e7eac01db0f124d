"""Canaries on a real engine, behind the real door, under streams."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from promotions import WHO

from opsd.daemon.adapters import canary as canary_module
from opsd.daemon.adapters.promotion import Promoter
from opsd.daemon.config.promotion import CompareConfig, PromotionConfig
from opsd.daemon.errors import EngineError
from opsd.daemon.serve.mirror import Mirror
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.canary import CanaryEnd, Metric
from opsd.daemon.types.engine import AdapterHandle, EngineChunk, EngineRequest
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.v1 import inference_pb2 as pb

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

STREAMS = 12
CALLERS = [f"caller-{number}" for number in range(60)]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


_used = itertools.count()


def candidate(store: SqlStore, handle: AdapterHandle) -> Adapter:
    # The engine is shared, and an id that it has seen must not come back for other weights.
    for _ in range(next(_used)):
        store.allot_lora_id()
    digest = handle.name.removeprefix("opsd-").ljust(64, "0")
    adapter = store.add_adapter(
        Adapter(
            handle.name, digest, 0, AdapterState.CANDIDATE, "-", handle.path, 8, 8.0, 1, "f", 1.0
        )
    )
    store.save_gate(
        GateReport("-", adapter.name, "base", GateVerdict.PASS, "fine.", (), 0.0, time.time())
    )
    return adapter


class FailingEngine:
    """The real engine, but some of one adapter's requests die in it."""

    def __init__(self, engine: Any, adapter: str, share: float) -> None:
        self._engine = engine
        self._adapter = adapter
        self._share = share
        self._random = random.Random(7)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        name = request.adapter.name if request.adapter else ""
        if name == self._adapter and self._random.random() < self._share:
            raise EngineError("injected")
        async with aclosing(self._engine.generate(request)) as chunks:
            async for chunk in chunks:
                yield chunk


@asynccontextmanager
async def promoting(door: Any, store: SqlStore, config: PromotionConfig) -> AsyncIterator[Promoter]:
    """The door with a promoter behind it, as the daemon joins them."""
    promoter = Promoter(store, door.residency, door.router, config, verify=lambda adapter: None)
    service, engine = door.service, door.service._engine
    mirror = Mirror(engine, door.router, promoter.canary, service._load, busy_above=64)
    service._observer, service._mirror = promoter.canary, mirror
    await promoter.restore()
    mirror.start()
    try:
        yield promoter
    finally:
        await mirror.stop()
        await promoter.stop()


class Traffic:
    """Streams by callers until told to stop; who got which adapter, in order."""

    def __init__(self, door: Any) -> None:
        self.door = door
        self.stopped = False
        self.answers: defaultdict[str, list[str]] = defaultdict(list)
        self.errors: list[grpc.StatusCode] = []
        self._numbers = itertools.count()

    async def run(self) -> None:
        await asyncio.gather(*(self._stream() for _ in range(STREAMS)))

    async def _stream(self) -> None:
        while not self.stopped:
            number = next(self._numbers)
            caller = CALLERS[number % len(CALLERS)] if number % 2 else ""
            request = pb.GenerateRequest(
                prompt=f"Tom has {number % 90} apples",
                sampling=pb.SamplingParams(max_tokens=4, ignore_eos=True),
            )
            metadata = (("x-opsd-actor", caller),) if caller else ()
            try:
                call = self.door.stub.GenerateStream(request, metadata=metadata)
                chunks = [chunk async for chunk in call]
            except grpc.aio.AioRpcError as error:
                self.errors.append(error.code())
                continue
            assert chunks[-1].usage.completion_tokens == 4
            (name,) = {chunk.adapter for chunk in chunks}
            self.answers[caller].append(name)


async def under_traffic(door: Any, until: Callable[[], bool]) -> Traffic:
    traffic = Traffic(door)
    running = asyncio.create_task(traffic.run())
    try:
        async with asyncio.timeout(120):
            while not until():  # noqa: ASYNC110 - the condition is not ours to signal
                await asyncio.sleep(0.02)
    finally:
        traffic.stopped = True
        with suppress(asyncio.CancelledError):
            await running
    return traffic


async def test_steps_under_streams_drop_nothing_and_keep_callers(
    door: Any, store: SqlStore, make_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary_module, "POLL_S", 0.05)
    config = PromotionConfig(
        steps=(0.05, 0.25, 1.0),
        step_min_s=0.0,
        step_min_requests=20,
        shadow_share=0.1,
        compare=CompareConfig(must_prove=()),
    )
    async with promoting(door, store, config) as promoter:
        adapter = candidate(store, make_adapter(21))
        await promoter.approve(adapter.name, **WHO)
        traffic = await under_traffic(door, lambda: door.router.snapshot.incumbent is not None)
        canary = store.get_canary(adapter.name)
        assert canary.end is CanaryEnd.PROMOTED, canary.reason
        shares = [e.detail_json for e in store.list_audit(limit=9).items]
        assert sum('"canary_share":0.25' in text for text in shares) == 1
        assert sum('"canary_share":0.05' in text for text in shares) == 1
    assert traffic.errors == []
    # Requests that were under way when a step was taken end with what they began with.
    slack = STREAMS
    for caller, names in traffic.answers.items():
        if caller:
            turns = sum(one != two for one, two in itertools.pairwise(names))
            assert turns <= 1 + slack // 6, f"{caller} went back and forth: {names}"
            assert names[0] == "base" or set(names) == {adapter.name}
    assert {name for names in traffic.answers.values() for name in names} == {
        "base",
        adapter.name,
    }


@pytest.mark.parametrize("shadow_only", [False, True], ids=["users", "mirror"])
async def test_a_canary_that_fails_is_withdrawn_by_itself(
    door: Any, store: SqlStore, make_adapter: Any, shadow_only: bool
) -> None:
    handle = make_adapter(23 if shadow_only else 22)
    adapter = candidate(store, handle)
    real = door.service._engine
    door.service._engine = FailingEngine(real, adapter.name, 0.6)
    config = PromotionConfig(
        steps=(0.0, 1.0) if shadow_only else (0.25, 1.0),
        shadow_share=0.5 if shadow_only else 0.0,
        step_min_requests=100_000,
    )
    try:
        async with promoting(door, store, config) as promoter:
            await promoter.approve(adapter.name, **WHO)
            traffic = await under_traffic(door, lambda: store.get_incumbent().canary == "")
            found = await promoter.find_canary(adapter.name)
    finally:
        door.service._engine = real
    assert found.end is CanaryEnd.WITHDRAWN
    entry = next(e for e in store.list_audit(limit=9).items if e.actor == "opsd")
    assert entry.action == "adapter.withdraw_canary"
    assert Metric.ENGINE_ERROR.value in entry.reason or "in a row failed" in entry.reason
    assert store.get_incumbent().adapter == "base"
    if shadow_only:
        assert traffic.errors == []
        assert {name for names in traffic.answers.values() for name in names} == {"base"}
