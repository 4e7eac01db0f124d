"""Every error of ours reaches the client as its own status and message, in every kind of call."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
import pytest

from opsd.daemon import errors
from opsd.daemon.app.interceptors import ErrorInterceptor, status_of
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, errors.OpsdError)
]


class Failing(pb_grpc.CollectionServiceServicer):
    """Answers once where it streams, then raises what it was given."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def GetPair(self, request: pb.GetPairRequest, context: Any) -> pb.Pair:
        raise self.error

    async def SubmitPairs(
        self, request_iterator: AsyncIterator[pb.SubmitPairsRequest], context: Any
    ) -> pb.SubmitPairsResponse:
        async for _ in request_iterator:
            pass
        raise self.error

    async def SubmitPairsAcked(
        self, request_iterator: AsyncIterator[pb.SubmitPairsRequest], context: Any
    ) -> AsyncIterator[pb.PairResult]:
        async for request in request_iterator:
            yield pb.PairResult(id=request.pair.id)
        raise self.error


@asynccontextmanager
async def serving(error: BaseException) -> AsyncIterator[Any]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    pb_grpc.add_CollectionServiceServicer_to_server(cast(Any, Failing)(error), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield pb_grpc.CollectionServiceStub(channel)
    await server.stop(None)


async def one_pair() -> AsyncIterator[pb.SubmitPairsRequest]:
    yield pb.SubmitPairsRequest(pair=pb.PairInput(id="a"))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_real_status_a_standard_base_and_pickles(kind: type) -> None:
    error = kind("what, where, fix")
    assert isinstance(status_of(error), grpc.StatusCode)
    assert str(pickle.loads(pickle.dumps(error))) == "what, where, fix"
    if kind is not errors.OpsdError:
        assert any(
            base.__module__ == "builtins" and base not in {Exception, BaseException, object}
            for base in kind.__mro__
        )


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
async def test_unary_call_shows_status_and_message(kind: type) -> None:
    async with serving(kind("pair 7: no such pair; list them")) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPair(pb.GetPairRequest(id="7"))
    assert caught.value.code() is status_of(kind(""))
    assert caught.value.details() == "pair 7: no such pair; list them"


async def test_streams_show_status_and_message_after_what_they_sent() -> None:
    async with serving(errors.StateError("no")) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitPairs(one_pair())
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        call = stub.SubmitPairsAcked(one_pair())
        assert (await call.read()).id == "a"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_unexpected_error_hides_its_text_and_names_an_incident_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(RuntimeError("password=hunter2")) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPair(pb.GetPairRequest(id="7"))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    details = caught.value.details() or ""
    assert "hunter2" not in details
    incident = details.split("incident ")[1].split(":")[0]
    assert any(incident in record.getMessage() for record in caplog.records)


async def test_a_long_message_in_any_script_still_arrives() -> None:
    async with serving(errors.InvalidInputError("ä" * 100_000)) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetPair(pb.GetPairRequest(id="7"))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith("ää")
