"""The server: malformed bytes, size limits, ports, health and reflection."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.serve.grpc_server import GrpcServer
from opsd.daemon.serve.metrics_http import MetricsServer
from opsd.daemon.serve.state import Availability, ServingState

GENERATE = "/opsd.v1.InferenceService/Generate"
STREAM = "/opsd.v1.InferenceService/GenerateStream"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Field 1 (prompt, a string) of length 2 with bytes that are no UTF-8; and a length beyond the end.
MALFORMED = {"invalid utf-8": b"\x0a\x02\xff\xfe", "truncated": b"\x0a\x7fabc"}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
async def test_malformed_bytes_are_an_invalid_argument(door, data: bytes) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.channel.unary_unary(GENERATE)(data)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "not a valid protobuf message" in (caught.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in door.channel.unary_stream(STREAM)(data):
            pass
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "UTF-8" in (caught.value.details() or "")


async def test_oversized_message_is_refused_with_both_sizes(door) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.channel.unary_unary(GENERATE)(b"\x0a" + b"x" * (8 << 20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert re.search(r"8388609 vs\. 8388608", caught.value.details() or "")


async def test_port_in_use_is_named(door) -> None:
    port = door.server.port
    with pytest.raises(ConfigError, match=rf"server\.port: .*127\.0\.0\.1:{port}.*in use"):
        GrpcServer(ServerConfig(port=port), [], Availability())


async def test_port_taken_by_a_plain_socket_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"server\.port: .*:{port}"):
            GrpcServer(ServerConfig(port=port), [], Availability())
        with pytest.raises(ConfigError, match=rf"server\.metrics_port: .*:{port} is in use"):
            MetricsServer("127.0.0.1", port, lambda: (True, ""))


async def test_health_follows_the_state(door) -> None:
    stub: Any = health_pb2_grpc.HealthStub(door.channel)
    for name in ("", "opsd.v1.InferenceService"):
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert response.status == SERVING
    watch = aiter(stub.Watch(health_pb2.HealthCheckRequest()))
    assert (await anext(watch)).status == SERVING
    for state, status in (
        (ServingState.STARTING, NOT_SERVING),
        (ServingState.READY, SERVING),
        (ServingState.DRAINING, NOT_SERVING),
    ):
        door.availability.set(state, "a reason")
        assert (await asyncio.wait_for(anext(watch), 5)).status == status


async def test_reflection_lists_the_services(door) -> None:
    async def ask():
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    async for response in stub.ServerReflectionInfo(ask()):
        names = {service.name for service in response.list_services_response.service}
    assert {"opsd.v1.InferenceService", "grpc.health.v1.Health"} <= names


async def test_a_burst_of_calls_is_answered_one_and_all(door) -> None:
    """gRPC's own limits would cancel some of them without a word."""
    from opsd.v1 import inference_pb2 as pb

    async def one() -> grpc.StatusCode:
        try:
            await door.stub.Generate(pb.GenerateRequest(prompt="1"))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK

    codes = await asyncio.gather(*(one() for _ in range(3000)))
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
