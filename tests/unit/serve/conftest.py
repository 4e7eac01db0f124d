"""An engine that writes letters, and a server in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest

from opsd.daemon.adapters.routing import Router
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.errors import EngineError
from opsd.daemon.serve.attempts import AttemptRecorder
from opsd.daemon.serve.grpc_server import GrpcServer, Registration
from opsd.daemon.serve.service import InferenceService
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.types.engine import (
    AdapterHandle,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    FinishReason,
)
from opsd.v1 import inference_pb2_grpc as pb_grpc


@dataclass
class FakeEngine:
    """One letter a token, named after the adapter. ``gate`` holds every completion after its first
    letter; ``running`` and ``aborted`` say what became of them."""

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True
    fails: bool = False
    start_errors: list[Exception] = field(default_factory=list)
    starts: int = 0
    requests: list[EngineRequest] = field(default_factory=list)
    running: int = 0
    aborted: int = 0
    loaded: list[AdapterHandle] = field(default_factory=list)
    info: EngineInfo = field(default_factory=lambda: EngineInfo("fake", 128, 300, 4, 8))

    async def start(self) -> None:
        self.starts += 1
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.healthy = True

    async def stop(self) -> None:
        self.healthy = False

    async def health(self) -> EngineHealth:
        return EngineHealth(self.healthy, "" if self.healthy else "the engine's process died")

    async def load_adapter(self, adapter: AdapterHandle) -> None:
        self.loaded.append(adapter)

    async def unload_adapter(self, adapter: AdapterHandle) -> None:
        self.loaded.remove(adapter)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        self.requests.append(request)
        letter = request.adapter.name[0] if request.adapter else "b"
        total = request.sampling.max_tokens
        self.running += 1
        done = False
        try:
            if not request.stream:
                await self.gate.wait()
                yield EngineChunk(letter * total, (1,) * total, 3, total, FinishReason.LENGTH, 0.25)
            for count in range(1, total + 1) if request.stream else ():
                last = count == total
                yield EngineChunk(
                    letter, (1,), 3, count, FinishReason.LENGTH if last else None, 0.25 * last
                )
                await self.gate.wait()
                if self.fails:
                    raise EngineError("the engine's process died")
            done = True
        finally:
            self.running -= 1
            self.aborted += not done


@dataclass
class Door:
    engine: FakeEngine
    router: Router
    availability: Availability
    service: InferenceService
    recorder: AttemptRecorder
    attempts: list[object]
    server: GrpcServer
    stub: pb_grpc.InferenceServiceAsyncStub
    channel: grpc.aio.Channel


class ListSink:
    def __init__(self, kept: list[object]) -> None:
        self._kept = kept

    def add_attempts(self, attempts: object) -> None:
        self._kept.extend(attempts)  # type: ignore[arg-type]


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    """A READY server with room for four completions."""
    config = ServerConfig(port=0, max_concurrent_requests=4, default_max_tokens=5)
    engine, router, availability = FakeEngine(), Router(), Availability()
    engine.gate.set()
    attempts: list[object] = []
    recorder = AttemptRecorder(ListSink(attempts))
    recorder.start()
    service = InferenceService(engine, router, availability, config, recorder)
    server = GrpcServer(
        config,
        [
            Registration(
                "opsd.v1.InferenceService",
                lambda s: pb_grpc.add_InferenceServiceServicer_to_server(service, s),
            )
        ],
        availability,
        [ErrorInterceptor()],
    )
    await server.start()
    availability.set(ServingState.READY)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Door(
            engine,
            router,
            availability,
            service,
            recorder,
            attempts,
            server,
            pb_grpc.InferenceServiceStub(channel),  # type: ignore[arg-type]
            channel,
        )
    engine.gate.set()
    await server.stop(0)
    await recorder.stop()
