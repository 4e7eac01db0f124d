"""What every call of ours goes through: errors become gRPC statuses here, and nowhere else."""

from __future__ import annotations

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from opsd.daemon.errors import OpsdError

log = logging.getLogger(__name__)

# gRPC sends the message percent-encoded in a header, and peers refuse headers of more than 8 KiB.
_MAX_DETAILS_BYTES = 6000
_OURS = "/opsd.v1."

Handler = Any  # grpc.RpcMethodHandler: its fields are untyped in the library


def status_of(error: OpsdError) -> grpc.StatusCode:
    """The status that a client sees for the error."""
    return grpc.StatusCode[error.code]


def bounded(message: str) -> str:
    """The message, cut where its percent-encoded form would outgrow a header."""
    size_bytes = 0
    for index, char in enumerate(message):
        plain = " " <= char <= "~" and char != "%"
        size_bytes += 1 if plain else 3 * len(char.encode("utf-8", "replace"))
        if size_bytes > _MAX_DETAILS_BYTES:
            return f"{message[:index]}…"
    return message


async def _abort(
    context: grpc.aio.ServicerContext[Any, Any], method: str, error: Exception
) -> None:
    if isinstance(error, OpsdError):
        await context.abort(status_of(error), bounded(str(error)))
    incident = uuid.uuid4().hex[:12]
    log.error("unexpected error method=%s incident=%s", method, incident, exc_info=error)
    await context.abort(
        grpc.StatusCode.INTERNAL,
        f"unexpected error, incident {incident}: the daemon's log has the details",
    )


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Maps errors of our services to statuses; a handler simply raises."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        if handler.response_streaming:
            inner = handler.stream_stream if handler.request_streaming else handler.unary_stream
            wrap = _wrap_generator if inspect.isasyncgenfunction(inner) else _wrap_coroutine
        else:
            inner = handler.stream_unary if handler.request_streaming else handler.unary_unary
            wrap = _wrap_coroutine
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[handler.request_streaming, handler.response_streaming]
        return make(
            wrap(inner, method),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _wrap_coroutine(inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, method, error)

    return call


def _wrap_generator(inner: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., Any]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        try:
            async with aclosing(inner(request, context)) as responses:  # type: ignore[type-var]
                async for response in responses:
                    yield response
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, method, error)

    return call
