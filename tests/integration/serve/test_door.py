"""The whole serving path: gRPC client, door, router, engine, adapters."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import grpc
import pytest

from opsd.daemon.adapters.routing import RoutingSnapshot
from opsd.daemon.types.engine import AdapterHandle
from opsd.v1 import inference_pb2 as pb

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MakeAdapter = Callable[[int], AdapterHandle]
GREEDY = pb.SamplingParams(max_tokens=16, temperature=0, ignore_eos=True)


def ask(text: str = "Tom has 61 apples.", **fields: object) -> pb.GenerateRequest:
    fields.setdefault("sampling", GREEDY)
    conversation = pb.Conversation(messages=[pb.Message(role="user", content=text)])
    return pb.GenerateRequest(conversation=conversation, **fields)  # type: ignore[arg-type]


def endless() -> pb.GenerateRequest:
    return ask(sampling=pb.SamplingParams(max_tokens=480, temperature=0, ignore_eos=True))


async def read_stream(door, request: pb.GenerateRequest) -> list[pb.GenerateChunk]:
    return [chunk async for chunk in door.stub.GenerateStream(request)]


async def read_all(call) -> None:
    async for _ in call:
        pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0.002)


async def test_stream_and_unary_agree(door) -> None:
    whole = await door.stub.Generate(ask())
    chunks = await read_stream(door, ask())
    assert "".join(chunk.text_delta for chunk in chunks) == whole.text
    assert sum(chunk.num_tokens for chunk in chunks) == whole.usage.completion_tokens == 16
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].finish_reason == whole.finish_reason == pb.FINISH_REASON_LENGTH
    assert {chunk.adapter for chunk in chunks} == {whole.adapter} == {"base"}
    assert 0 < whole.first_token_s <= whole.total_s


async def test_swaps_under_load_lose_and_mix_nothing(door, make_adapter: MakeAdapter) -> None:
    """240 requests on 16 streams, three swaps meanwhile: each answer is the solo answer of the one
    adapter that it names."""
    one, two = make_adapter(1), make_adapter(2)
    prompts = [f"Tom has {n} apples." for n in range(10, 20)]
    solo: dict[tuple[str, str], str] = {}
    for adapter in (one, two):
        await door.residency.ensure(adapter, "candidate")
    for name in ("base", one.name, two.name):
        for prompt in prompts:
            solo[name, prompt] = (await door.stub.Generate(ask(prompt, adapter=name))).text
    assert len({solo[name, prompts[0]] for name in ("base", one.name, two.name)}) == 3

    numbers = iter(range(240))
    answered: Counter[str] = Counter()
    wrong: list[str] = []

    async def stream() -> None:
        for number in numbers:
            prompt = prompts[number % len(prompts)]
            chunks = await read_stream(door, ask(prompt))
            names = {chunk.adapter for chunk in chunks}
            assert len(names) == 1
            (name,) = names
            answered[name] += 1
            if "".join(chunk.text_delta for chunk in chunks) != solo[name, prompt]:
                wrong.append(f"{number} {name}")

    async def swap_at(count: int, snapshot: RoutingSnapshot) -> None:
        await until(lambda: answered.total() >= count)
        door.router.swap(snapshot)

    async def swap_three_times() -> None:
        await swap_at(50, RoutingSnapshot(one, epoch=1))
        await swap_at(110, RoutingSnapshot(two, epoch=2))
        await door.residency.retire(one.name)
        await swap_at(180, RoutingSnapshot(epoch=3))
        await door.residency.retire(two.name)

    async with asyncio.TaskGroup() as group:
        for _ in range(16):
            group.create_task(stream())
        group.create_task(swap_three_times())
    assert answered.total() == 240
    assert set(answered) == {"base", one.name, two.name}
    assert wrong == []
    assert not door.residency.handles()
    assert door.router.total_in_flight() == 0


async def test_cancellation_reaches_the_engine(door) -> None:
    call = door.stub.GenerateStream(endless())
    await call.read()
    assert door.engine.num_unfinished_requests() == 1
    call.cancel()
    await until(lambda: door.engine.num_unfinished_requests() == 0)
    await until(lambda: door.service.in_flight == 0)


@pytest.mark.parametrize("method", ["Generate", "GenerateStream"])
async def test_deadline_stops_the_engine(door, method: str) -> None:
    call = getattr(door.stub, method)(endless(), timeout=0.15)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Generate" else read_all(call))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: door.engine.num_unfinished_requests() == 0)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (ask("7" * 600), "INVALID_ARGUMENT", "tokens, but the context has 512"),
        (ask(adapter="opsd-none"), "NOT_FOUND", "'opsd-none' is not loaded; loaded are base"),
        (pb.GenerateRequest(), "INVALID_ARGUMENT", "set prompt or conversation"),
        (
            ask(sampling=pb.SamplingParams(max_tokens=513)),
            "INVALID_ARGUMENT",
            "max_tokens: is 513, must be 1 to 512",
        ),
        (
            ask(sampling=pb.SamplingParams(temperature=2.5)),
            "INVALID_ARGUMENT",
            "temperature: is 2.5, must be 0",
        ),
    ],
    ids=["prompt too long", "unknown adapter", "no input", "max_tokens", "temperature"],
)
async def test_bad_request_is_refused_and_the_daemon_lives(
    door, request_: pb.GenerateRequest, code: str, message: str
) -> None:
    for attempt in (door.stub.Generate(request_), read_stream(door, request_)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await attempt
        assert caught.value.code() is grpc.StatusCode[code]
        assert message in (caught.value.details() or "")
    assert (await door.stub.Generate(ask())).text


@pytest.mark.parametrize(
    "sampling",
    [
        pb.SamplingParams(temperature=0.001, max_tokens=4),
        pb.SamplingParams(temperature=2, top_p=1e-9, top_k=1, max_tokens=4),
        pb.SamplingParams(top_k=384, seed=(1 << 63) - 1, max_tokens=4),
        pb.SamplingParams(max_tokens=512, stop=["\N{SNOWMAN}"] * 16),
    ],
)
async def test_values_at_their_bounds_are_taken(door, sampling: pb.SamplingParams) -> None:
    assert (await door.stub.Generate(ask(sampling=sampling))).usage.completion_tokens
