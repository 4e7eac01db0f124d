"""The engine protocol against a real vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from opsd.daemon.config.schema import EngineConfig, ModelConfig
from opsd.daemon.errors import AdapterError, ConfigError, InvalidInputError, StateError
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.types.engine import (
    AdapterHandle,
    ChatMessage,
    EngineChunk,
    EngineRequest,
    FinishReason,
    Sampling,
)

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

MakeAdapter = Callable[[int], AdapterHandle]
GREEDY = Sampling(max_tokens=24, temperature=0.0, ignore_eos=True)
CHAT = EngineRequest("chat", GREEDY, messages=(ChatMessage("user", "Tom has 61 apples."),))


async def complete(engine: VllmEngine, request: EngineRequest) -> list[EngineChunk]:
    return [chunk async for chunk in engine.generate(request)]


def text_of(chunks: list[EngineChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def test_stream_and_whole_completion_agree(engine: VllmEngine) -> None:
    streamed = await complete(engine, CHAT)
    whole = await complete(engine, replace(CHAT, stream=False))
    assert len(whole) == 1
    assert text_of(streamed) == whole[0].text
    assert sum(len(chunk.token_ids) for chunk in streamed) == 24
    assert streamed[-1].num_completion_tokens == whole[0].num_completion_tokens == 24
    assert streamed[-1].finish_reason is whole[0].finish_reason is FinishReason.LENGTH
    assert all(chunk.finish_reason is None for chunk in streamed[:-1])
    assert whole[0].first_token_s > 0


async def test_larger_chunks_lose_nothing_and_do_not_hold_the_first_token(
    engine: VllmEngine,
) -> None:
    single = await complete(engine, CHAT)
    by_five = await complete(engine, replace(CHAT, tokens_per_chunk=5))
    assert text_of(by_five) == text_of(single)
    assert [token for chunk in by_five for token in chunk.token_ids] == [
        token for chunk in single for token in chunk.token_ids
    ]
    # The reader may be late, and then finds two chunks as one: multiples of five in either case.
    counts = [chunk.num_completion_tokens for chunk in by_five]
    assert (counts[0] - 1) % 5 == 0
    assert counts[-1] == 24
    assert len(counts) <= 6
    assert all((count - 1) % 5 == 0 for count in counts[:-1])


async def test_larger_chunks_end_where_a_stop_string_does(engine: VllmEngine) -> None:
    whole = text_of(await complete(engine, CHAT))
    stop = replace(CHAT, sampling=replace(GREEDY, stop=(whole[4:6],)), tokens_per_chunk=5)
    stopped = await complete(engine, stop)
    assert stopped[-1].finish_reason is FinishReason.STOP
    assert text_of(stopped) == whole[: whole.index(whole[4:6])]
    assert sum(len(chunk.token_ids) for chunk in stopped) == stopped[-1].num_completion_tokens


async def test_chat_template_is_applied_and_thinking_changes_it(engine: VllmEngine) -> None:
    plain = await complete(engine, CHAT)
    thinking = await complete(engine, replace(CHAT, enable_thinking=True))
    raw = await complete(engine, replace(CHAT, messages=(), prompt="Tom has 61 apples."))
    assert raw[0].num_prompt_tokens < plain[0].num_prompt_tokens < thinking[0].num_prompt_tokens


async def test_prompt_that_fills_the_context_is_refused_with_both_lengths(
    engine: VllmEngine,
) -> None:
    request = replace(CHAT, messages=(), prompt="7" * 512)
    with pytest.raises(InvalidInputError, match=r"512 tokens, but the context has 512 .* 511"):
        await complete(engine, request)
    chunks = await complete(engine, replace(request, prompt="7" * 511))
    assert chunks[-1].num_completion_tokens == 1
    assert chunks[-1].finish_reason is FinishReason.LENGTH


async def test_long_prompt_is_refused_from_the_thread_too(engine: VllmEngine) -> None:
    with pytest.raises(InvalidInputError, match="6000 tokens"):
        await complete(engine, replace(CHAT, messages=(), prompt="7" * 6000))


async def test_stop_string_and_seed(engine: VllmEngine) -> None:
    whole = text_of(await complete(engine, CHAT))
    stop = whole[4:6]
    stopped = await complete(engine, replace(CHAT, sampling=replace(GREEDY, stop=(stop,))))
    assert stopped[-1].finish_reason is FinishReason.STOP
    assert text_of(stopped) == whole[: whole.index(stop)]
    for seed in (7, (1 << 63) - 1):
        sampled = replace(CHAT, sampling=replace(GREEDY, temperature=1.5, seed=seed))
        assert text_of(await complete(engine, sampled)) == text_of(await complete(engine, sampled))


async def test_seeded_prompts_that_overfill_a_step_do_not_kill_the_engine(
    engine: VllmEngine,
) -> None:
    """vLLM rewinds the generator of a prompt that it takes in parts, which a CPU's cannot do."""
    sampling = replace(GREEDY, temperature=1.0, max_tokens=4)
    requests = [
        replace(
            CHAT,
            request_id=f"long-{number}",
            sampling=replace(sampling, seed=number),
            messages=(),
            prompt=f"{number % 10}" * 480,
            stream=False,
        )
        for number in range(12)
    ]
    together = await asyncio.gather(*(complete(engine, request) for request in requests))
    assert [chunks[-1].num_completion_tokens for chunks in together] == [4] * 12
    assert (await engine.health()).healthy


async def test_closing_the_generator_stops_the_engines_work(engine: VllmEngine) -> None:
    endless = replace(CHAT, sampling=replace(GREEDY, max_tokens=480))
    async with aclosing(engine.generate(endless)) as chunks:
        await anext(chunks)
        assert engine.num_unfinished_requests() == 1
    assert engine.num_unfinished_requests() == 0
    assert await engine_is_idle(engine)


async def test_cancelling_the_reader_stops_the_engines_work(engine: VllmEngine) -> None:
    endless = replace(CHAT, sampling=replace(GREEDY, max_tokens=480))
    started = asyncio.Event()

    async def read() -> None:
        async for _ in engine.generate(endless):
            started.set()

    reader = asyncio.create_task(read())
    await started.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await engine_is_idle(engine)


async def engine_is_idle(engine: VllmEngine) -> bool:
    """Asks vLLM's own gauge, which EngineCore reports with its next step."""
    from prometheus_client import REGISTRY

    for _ in range(100):
        await complete(engine, replace(CHAT, sampling=replace(GREEDY, max_tokens=2)))
        labels = {"engine": "0", "model_name": engine.info.model_path}
        if REGISTRY.get_sample_value("vllm:num_requests_running", labels) == 0:
            return True
    return False


async def test_adapters_change_the_completion_and_can_be_unloaded(
    engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    one, two = make_adapter(1), make_adapter(2)
    base = text_of(await complete(engine, CHAT))
    with pytest.raises(StateError, match="not loaded"):
        await complete(engine, replace(CHAT, adapter=one))
    for adapter in (one, two, one):
        await engine.load_adapter(adapter)
    texts = [text_of(await complete(engine, replace(CHAT, adapter=a))) for a in (one, two)]
    assert len({base, *texts}) == 3
    assert text_of(await complete(engine, CHAT)) == base
    for adapter in (one, two):
        await engine.unload_adapter(adapter)
    with pytest.raises(StateError, match="not loaded"):
        await complete(engine, replace(CHAT, adapter=one))


async def test_adapter_in_use_is_not_unloaded(
    engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    adapter = make_adapter(1)
    await engine.load_adapter(adapter)
    endless = replace(CHAT, adapter=adapter, sampling=replace(GREEDY, max_tokens=400))
    async with aclosing(engine.generate(endless)) as chunks:
        await anext(chunks)
        with pytest.raises(StateError, match="in use by 1"):
            await engine.unload_adapter(adapter)
    await engine.unload_adapter(adapter)


async def test_name_id_or_path_of_another_adapter_is_refused(
    engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    one, two = make_adapter(1), make_adapter(2)
    await engine.load_adapter(one)
    try:
        for impostor in (
            replace(two, name=one.name),
            replace(two, lora_id=one.lora_id),
            replace(two, path=one.path),
        ):
            with pytest.raises(StateError, match="new bytes need a new name"):
                await engine.load_adapter(impostor)
    finally:
        await engine.unload_adapter(one)
    with pytest.raises(StateError, match="new bytes need a new name"):
        await engine.load_adapter(replace(two, lora_id=one.lora_id))


async def test_broken_adapter_is_refused_and_the_engine_lives(
    engine: VllmEngine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    good = Path(make_adapter(1).path)
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        await engine.load_adapter(AdapterHandle("opsd-missing", 2001, str(tmp_path / "none")))
    (tmp_path / "adapter_config.json").write_text((good / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.safetensors").write_bytes(b"these are no tensors")
    with pytest.raises(AdapterError, match="cannot be loaded"):
        await engine.load_adapter(AdapterHandle("opsd-broken", 2002, str(tmp_path)))
    assert (await engine.health()).healthy
    assert text_of(await complete(engine, CHAT))


async def test_users_overtake_low_priority_work(engine: VllmEngine) -> None:
    """With every sequence slot taken and a queue behind, a user's request is next."""
    finished: list[str] = []

    async def run(name: str, priority: int) -> None:
        sampling = replace(GREEDY, max_tokens=48 if priority else 16)
        request = replace(CHAT, request_id=name, sampling=sampling, priority=priority)
        await complete(engine, replace(request, stream=False))
        finished.append(name)

    background = [asyncio.create_task(run(f"gate-{i}", 10)) for i in range(320)]
    async with asyncio.timeout(60):
        # The first may have ended before the last has begun.
        while engine.num_unfinished_requests() + len(finished) < 320:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
    await run("user", 0)
    await asyncio.gather(*background)
    assert finished.index("user") < 200


async def test_text_is_always_valid_utf8(engine: VllmEngine) -> None:
    hot = replace(GREEDY, temperature=2.0, max_tokens=200, seed=3)
    for chunk in await complete(engine, replace(CHAT, sampling=hot)):
        chunk.text.encode("utf-8")


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is empty"), ("/nowhere/model", "there is no directory /nowhere/model")],
)
async def test_model_that_does_not_exist_is_named(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.path: .*{message}"):
        await VllmEngine(ModelConfig(path=path), EngineConfig()).start()


async def test_directory_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        await VllmEngine(ModelConfig(path=str(tmp_path)), EngineConfig()).start()
