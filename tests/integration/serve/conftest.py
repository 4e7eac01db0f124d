"""The gRPC door in front of a real engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import pytest_asyncio

from opsd.daemon.adapters.residency import Residency
from opsd.daemon.adapters.routing import Router
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.serve.grpc_server import GrpcServer, Registration
from opsd.daemon.serve.service import InferenceService
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.v1 import inference_pb2_grpc as pb_grpc


@dataclass
class RealDoor:
    engine: VllmEngine
    router: Router
    residency: Residency
    availability: Availability
    service: InferenceService
    stub: pb_grpc.InferenceServiceAsyncStub


@asynccontextmanager
async def open_door(engine: VllmEngine) -> AsyncIterator[RealDoor]:
    router, availability = Router(), Availability()
    residency = Residency(engine, router)
    config = ServerConfig(port=0)
    service = InferenceService(engine, router, availability, config)
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
    try:
        availability.set(ServingState.READY)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = pb_grpc.InferenceServiceStub(channel)
            yield RealDoor(engine, router, residency, availability, service, stub)  # type: ignore[arg-type]
    finally:
        await server.stop(0)


@pytest_asyncio.fixture(loop_scope="session")
async def door(engine: VllmEngine) -> AsyncIterator[RealDoor]:
    """Leaves the shared engine as it was: no adapter loaded."""
    async with open_door(engine) as door:
        yield door
        door.router.swap(type(door.router.snapshot)())
        for handle in list(door.residency.handles()):
            await door.residency.retire(handle.name)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def door_to():
    """Opens a door to an engine of the test's own: ``async with door_to(engine) as door``."""
    return open_door
