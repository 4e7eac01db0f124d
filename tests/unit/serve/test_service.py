"""InferenceService over real gRPC with an engine that writes letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import pytest
from prometheus_client import REGISTRY

from opsd.daemon.adapters.routing import RoutingSnapshot
from opsd.daemon.config.schema import ServerConfig
from opsd.daemon.serve.state import ServingState
from opsd.daemon.types.engine import AdapterHandle
from opsd.v1 import inference_pb2 as pb

ALPHA = AdapterHandle("alpha", 1, "/a")


def ask(**fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(prompt="1+1", **fields)  # type: ignore[arg-type]


def count(method: str, adapter: str, code: str) -> float:
    labels = {"method": method, "adapter": adapter, "code": code}
    return REGISTRY.get_sample_value("opsd_requests_total", labels) or 0.0


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0.002)


async def test_whole_completion(door) -> None:
    before = count("Generate", "base", "OK")
    response = await door.stub.Generate(ask(request_id="r1"))
    assert response.text == "bbbbb"
    assert response.adapter == "base"
    assert response.finish_reason == pb.FINISH_REASON_LENGTH
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (3, 5)
    assert response.request_id == "r1"
    assert response.first_token_s == 0.25
    assert response.total_s > 0
    assert count("Generate", "base", "OK") == before + 1


async def test_stream_names_its_adapter_in_every_chunk(door) -> None:
    door.router.swap(RoutingSnapshot(incumbent=ALPHA))
    chunks = [chunk async for chunk in door.stub.GenerateStream(ask(request_id="r2"))]
    assert "".join(chunk.text_delta for chunk in chunks) == "aaaaa"
    assert {chunk.adapter for chunk in chunks} == {"alpha"}
    assert sum(chunk.num_tokens for chunk in chunks) == 5
    assert all(chunk.finish_reason == pb.FINISH_REASON_UNSPECIFIED for chunk in chunks[:-1])
    last = chunks[-1]
    assert last.finish_reason == pb.FINISH_REASON_LENGTH
    assert last.usage.completion_tokens == 5
    assert last.request_id == "r2"


async def test_a_crowd_gets_several_tokens_a_message(door, monkeypatch) -> None:
    """The service tells the pacer how many streams there are, and how fast they were."""
    asked: list[int] = []
    finished: list[tuple[int, float]] = []
    pacer = door.service._pacer

    def three(num_streams: int) -> int:
        asked.append(num_streams)
        return 3

    monkeypatch.setattr(pacer, "tokens_per_chunk", three)
    monkeypatch.setattr(pacer, "finished", lambda *seen: finished.append(seen))
    door.engine.gate.clear()
    calls = [door.stub.GenerateStream(ask()) for _ in range(3)]
    await until(lambda: door.engine.running == 3)
    door.engine.gate.set()
    for call in calls:
        await anext_of_rest(call)
    assert sorted(asked) == [1, 2, 3]
    assert [request.tokens_per_chunk for request in door.engine.requests] == [3, 3, 3]
    assert [num_tokens for num_tokens, _ in finished] == [4, 4, 4]
    assert all(seconds > 0 for _, seconds in finished)


async def test_a_swap_does_not_touch_a_stream_in_flight(door) -> None:
    door.router.swap(RoutingSnapshot(incumbent=ALPHA))
    door.engine.gate.clear()
    chunks = aiter(door.stub.GenerateStream(ask()))
    first = await anext(chunks)
    door.router.swap(RoutingSnapshot(epoch=1))
    door.engine.gate.set()
    rest = [chunk async for chunk in chunks]
    assert {chunk.adapter for chunk in [first, *rest]} == {"alpha"}
    assert (await door.stub.Generate(ask())).adapter == "base"


async def test_attempt_is_kept_under_the_id_that_the_client_got(door) -> None:
    response = await door.stub.Generate(ask(request_id="r3"))
    chunks = [chunk async for chunk in door.stub.GenerateStream(ask(request_id="r4"))]
    assert await door.recorder.flush()
    kept = {attempt.id: attempt for attempt in door.attempts}
    assert set(kept) == {response.attempt_id, chunks[-1].attempt_id}
    attempt = kept[chunks[-1].attempt_id]
    assert (attempt.request_id, attempt.adapter, attempt.prompt) == ("r4", "base", "1+1")
    assert (attempt.completion, attempt.completion_tokens) == ("bbbbb", 5)


async def test_an_attempt_that_is_not_kept_has_no_id(door, monkeypatch) -> None:
    config = ServerConfig(record_attempts=False)
    monkeypatch.setattr(door.service, "_config", config)
    response = await door.stub.Generate(ask())
    assert await door.recorder.flush()
    assert (response.attempt_id, len(door.attempts)) == ("", 1)


async def test_cancellation_reaches_the_engine(door) -> None:
    door.engine.gate.clear()
    before = count("GenerateStream", "base", "CANCELLED")
    call = door.stub.GenerateStream(ask())
    await call.read()
    assert door.engine.running == 1
    call.cancel()
    await until(lambda: door.engine.running == 0 and door.service.in_flight == 0)
    assert door.engine.aborted == 1
    assert door.router.total_in_flight() == 0
    assert count("GenerateStream", "base", "CANCELLED") == before + 1


async def test_client_that_vanishes_stops_the_engine(door) -> None:
    door.engine.gate.clear()
    call = door.stub.GenerateStream(ask())
    await call.read()
    await door.channel.close()
    await until(lambda: door.engine.running == 0)
    assert door.engine.aborted == 1


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_deadline_stops_the_engine(door, method: str) -> None:
    door.engine.gate.clear()
    call = getattr(door.stub, method)(ask(), timeout=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Generate" else anext_of_rest(call))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: door.engine.running == 0)
    assert door.engine.aborted == 1


async def anext_of_rest(call) -> None:
    async for _ in call:
        pass


async def test_engine_failure_is_unavailable_and_counted_against_the_adapter(door) -> None:
    door.router.swap(RoutingSnapshot(incumbent=ALPHA))
    door.engine.fails = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext_of_rest(door.stub.GenerateStream(ask()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert door.router.engine_errors("alpha") == 1
    assert door.router.in_flight("alpha") == 0


async def test_one_request_too_many_is_refused(door) -> None:
    door.engine.gate.clear()
    calls = [door.stub.Generate(ask()) for _ in range(4)]
    waiting = [asyncio.ensure_future(call) for call in calls]
    await until(lambda: door.service.in_flight == 4)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.Generate(ask())
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "server.max_concurrent_requests" in (caught.value.details() or "")
    door.engine.gate.set()
    assert {response.text for response in await asyncio.gather(*waiting)} == {"bbbbb"}
    await door.stub.Generate(ask())


async def test_draining_refuses_new_and_finishes_old(door) -> None:
    door.engine.gate.clear()
    chunks = aiter(door.stub.GenerateStream(ask()))
    await anext(chunks)
    door.availability.set(ServingState.DRAINING, "the daemon is stopping")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.Generate(ask())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the daemon is stopping" in (caught.value.details() or "")
    assert await door.service.drain(0.01) == 1
    door.engine.gate.set()
    assert len([chunk async for chunk in chunks]) == 4
    assert await door.service.drain(5) == 0


async def test_unknown_adapter_lists_what_is_loaded(door) -> None:
    door.router.swap(RoutingSnapshot(incumbent=ALPHA))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.Generate(ask(adapter="gamma"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert caught.value.details() == "adapter: 'gamma' is not loaded; loaded are alpha, base"
    assert (await door.stub.Generate(ask(adapter="al"))).adapter == "alpha"
    assert (await door.stub.Generate(ask(adapter="base"))).adapter == "base"


async def test_bad_request_is_refused_before_the_engine_and_the_door_stays_open(door) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await door.stub.Generate(ask(sampling=pb.SamplingParams(temperature=-1)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "sampling.temperature: is -1.0, must be 0 (greedy) to 2"
    assert door.engine.aborted == door.engine.running == 0
    assert door.service.in_flight == 0
    await door.stub.Generate(ask())


async def test_who_shares_the_engine_is_told_what_users_see(door) -> None:
    told: list[tuple[str, object]] = []

    class Observer:
        def arrived(self, users: int) -> object:
            told.append(("arrived", users))
            return "tag"

        def first_token(self, tag: object, seconds: float) -> None:
            assert seconds > 0
            told.append(("first", tag))

        def tokens(self, num_tokens: int, seconds: float) -> None:
            assert seconds > 0
            told.append(("tokens", num_tokens))

        def left(self, users: int) -> None:
            told.append(("left", users))

    door.service._load.observe(Observer())
    async for _ in door.stub.GenerateStream(pb.GenerateRequest(prompt="x")):
        pass
    assert told == [("arrived", 1), ("first", "tag"), *[("tokens", 1)] * 4, ("left", 0)]
    told.clear()
    door.engine.gate.clear()
    # The engine says that the first token took a quarter of a second.
    asyncio.get_running_loop().call_later(0.3, door.engine.gate.set)
    await door.stub.Generate(pb.GenerateRequest(prompt="x"))
    assert told == [("arrived", 1), ("tokens", 4), ("left", 0)]
    told.clear()
    with pytest.raises(grpc.aio.AioRpcError):
        await door.stub.Generate(pb.GenerateRequest(prompt="x", adapter="opsd-none"))
    assert told == [("arrived", 1), ("left", 0)]
