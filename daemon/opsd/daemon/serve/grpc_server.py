"""Builds the gRPC server: limits, health, reflection, and a bind that says what is wrong."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.errors import ConfigError, InvalidInputError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.state import Availability

_OURS = "/opsd.v1."
_SWITCH_INTERVAL_S = 0.0005
_UNREQUESTED_S = 60

Handler = Any  # grpc.RpcMethodHandler: its fields are untyped in the library


@dataclass(frozen=True, slots=True)
class Registration:
    """A service: its full name and what adds its handlers, e.g.
    ``lambda server: add_InferenceServiceServicer_to_server(servicer, server)``."""

    name: str
    add: Callable[[grpc.aio.Server], None]


class GrpcServer:
    """A bound server; ``start`` makes it answer, health says NOT_SERVING until READY."""

    def __init__(
        self,
        config: ServerConfig,
        registrations: Sequence[Registration],
        availability: Availability,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
    ) -> None:
        """Binds the port; raises ConfigError when it cannot be had."""
        self._availability = availability
        # The guard against malformed bytes is innermost, so that the caller's interceptors see its
        # errors like any other.
        self._server = grpc.aio.server(
            interceptors=[*interceptors, MalformedRequestInterceptor()], options=_options(config)
        )
        self._health = health_aio.HealthServicer()
        self._changed = asyncio.Event()
        self._publisher: asyncio.Task[None] | None = None
        names = [registration.name for registration in registrations]
        self._health_names = ["", *names]
        for registration in registrations:
            registration.add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection(
            [*names, health_name, reflection.SERVICE_NAME], self._server
        )
        self.port = _bind(self._server, config)

    async def start(self) -> None:
        """Takes calls from now on."""
        # A thread of gRPC's hands every event to the loop, and waits for the interpreter's lock
        # each time: with Python's 5 ms the first token of a call in a crowd comes half as late
        # again.
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        await self._publish()
        self._availability.subscribe(self._changed.set)
        self._publisher = asyncio.create_task(self._follow(), name="health-publisher")
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses new calls at once; calls still running after ``grace_s`` are cancelled."""
        if self._publisher is not None:
            self._publisher.cancel()
            with suppress(asyncio.CancelledError):
                await self._publisher
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._publish()

    async def _publish(self) -> None:
        ready = self._availability.is_ready
        metrics.READY.set(ready)
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._health_names:
            await self._health.set(name, status)


def _options(config: ServerConfig) -> list[tuple[str, int]]:
    size_bytes = config.max_message_mib << 20
    return [
        ("grpc.max_receive_message_length", size_bytes),
        ("grpc.max_send_message_length", size_bytes),
        # A burst of calls above the default of 1,000 and 3,000 is cancelled without a word.
        ("grpc.server.max_pending_requests", config.max_pending_rpcs),
        ("grpc.server.max_pending_requests_hard_limit", config.max_pending_rpcs),
        ("grpc.server_max_unrequested_time_in_server", _UNREQUESTED_S),
        # Two daemons must not share a port without knowing.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _bind(server: grpc.aio.Server, config: ServerConfig) -> int:
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = f"{host}:{config.port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(_bind_message(address)) from error
    if port == 0:
        raise ConfigError(_bind_message(address))
    return int(port)


def _bind_message(address: str) -> str:
    return (
        f"server.port: cannot listen on {address}: it is in use by another process, or "
        "server.host is no address of this machine; stop that process, or set another port (0: "
        "any free one)"
    )


@dataclass(frozen=True, slots=True)
class _Malformed:
    """Stands for a request whose bytes are not the message that the method takes."""

    reason: str


class MalformedRequestInterceptor(grpc.aio.ServerInterceptor):
    """Answers INVALID_ARGUMENT, with the reason, where gRPC itself would say INTERNAL."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(_OURS):
            return handler
        return _guarded(handler)


def _guarded(handler: Handler) -> Handler:
    deserialize = handler.request_deserializer

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError as error:
            return _Malformed(str(error))

    async def unary_unary(request: Any, context: Any) -> Any:
        return await handler.unary_unary(_well_formed(request), context)

    async def unary_stream(request: Any, context: Any) -> Any:
        await handler.unary_stream(_well_formed(request), context)

    async def unary_generator(request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in handler.unary_stream(_well_formed(request), context):
            yield response

    async def stream_unary(requests: Any, context: Any) -> Any:
        return await handler.stream_unary(_well_formed_all(requests), context)

    async def stream_stream(requests: Any, context: Any) -> Any:
        await handler.stream_stream(_well_formed_all(requests), context)

    async def stream_generator(requests: Any, context: Any) -> AsyncIterator[Any]:
        async for response in handler.stream_stream(_well_formed_all(requests), context):
            yield response

    codec = {
        "request_deserializer": read,
        "response_serializer": handler.response_serializer,
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(unary_unary, **codec)
    if handler.unary_stream:
        yields = inspect.isasyncgenfunction(handler.unary_stream)
        return grpc.unary_stream_rpc_method_handler(
            unary_generator if yields else unary_stream, **codec
        )
    if handler.stream_unary:
        return grpc.stream_unary_rpc_method_handler(stream_unary, **codec)
    yields = inspect.isasyncgenfunction(handler.stream_stream)
    return grpc.stream_stream_rpc_method_handler(
        stream_generator if yields else stream_stream, **codec
    )


def _well_formed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidInputError(
            f"the request is not a valid protobuf message of this method ({request.reason}); "
            "strings must be UTF-8"
        )
    return request


async def _well_formed_all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)
