"""Samples of the incumbent in whatever room users, evaluation and runs leave in the engine."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.ports import Incumbents, Room
from opsd.daemon.config.sources import OwnSamplesConfig
from opsd.daemon.errors import EngineError
from opsd.daemon.types.engine import (
    AdapterHandle,
    ChatMessage,
    Engine,
    EngineRequest,
    FinishReason,
    Sampling,
)

PRIORITY = 30
"""Below users (0), held-out evaluation (10) and runs (20)."""

_BEHIND_RUNS = 1 << 60
"""Added to a turn: whoever waits for room on behalf of a run goes first, and is taken out last."""

# An interrupted sample begins anew; every message costs the event loop.
_TOKENS_PER_CHUNK = 8
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class Trace:
    """One sample, whole or cut off at its limit of tokens."""

    text: str
    tokens: int
    is_cut_off: bool


@dataclass(frozen=True, slots=True)
class Traces:
    """Samples of one prompt, in the order of their seeds."""

    adapter: str
    traces: tuple[Trace, ...]


class OwnSampler:
    """A sample that users interrupt begins anew later, with its seed: as if it had come later."""

    def __init__(self, engine: Engine, incumbents: Incumbents, room: Room) -> None:
        self._engine = engine
        self._incumbents = incumbents
        self._room = room

    async def sample(
        self, source: str, prompt: str, config: OwnSamplesConfig, *, num_samples: int, seed_of: str
    ) -> Traces:
        """``num_samples`` answers to ``prompt``, all of one adapter; ``seed_of`` names the round.

        Raises InvalidInputError (the prompt is too long), EngineError, NotReadyError, or
        TimeoutError after ``config.sample_timeout_s``.
        """
        with self._incumbents.lease() as incumbent:
            async with asyncio.timeout(config.sample_timeout_s):
                traces = await _all(
                    [
                        self._one(
                            source,
                            prompt,
                            sampling(config, seed(seed_of, index)),
                            incumbent.adapter,
                            enable_thinking=config.enable_thinking,
                        )
                        for index in range(num_samples)
                    ]
                )
            return Traces(incumbent.name, tuple(traces))

    async def _one(
        self,
        source: str,
        prompt: str,
        drawn: Sampling,
        adapter: AdapterHandle | None,
        *,
        enable_thinking: bool,
    ) -> Trace:
        turn = _BEHIND_RUNS + self._room.next_turn()
        while True:
            request = EngineRequest(
                request_id=f"{source}-{uuid.uuid4().hex}",
                sampling=drawn,
                messages=(ChatMessage("user", prompt),),
                enable_thinking=enable_thinking,
                adapter=adapter,
                priority=PRIORITY,
                tokens_per_chunk=_TOKENS_PER_CHUNK,
            )
            trace = await self._stretch(source, request, turn)
            if trace is not None:
                return trace
            metrics.SAMPLES.labels(source, "interrupted").inc()

    async def _stretch(self, source: str, request: EngineRequest, turn: int) -> Trace | None:
        """The sample; None when users took its place before its end."""
        async with self._room.room(turn) as permit:
            work = asyncio.create_task(self._generate(source, request))
            permit.on_revoke(work.cancel)
            try:
                await asyncio.wait({work})
            finally:
                # The place is free only when the engine has been told.
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            return None if work.cancelled() else work.result()

    async def _generate(self, source: str, request: EngineRequest) -> Trace:
        pieces: list[str] = []
        tokens = 0
        finish: FinishReason | None = None
        try:
            async with aclosing(self._engine.generate(request)) as chunks:  # type: ignore[type-var]
                async for chunk in chunks:
                    pieces.append(chunk.text)
                    metrics.TOKENS.labels(source).inc(chunk.num_completion_tokens - tokens)
                    tokens = chunk.num_completion_tokens
                    finish = chunk.finish_reason or finish
            if finish is None:
                raise EngineError("the engine ended a sample without saying why")
        except EngineError:
            metrics.SAMPLES.labels(source, "failed").inc()
            raise
        metrics.SAMPLES.labels(source, "done").inc()
        return Trace("".join(pieces), tokens, finish is FinishReason.LENGTH)


def sampling(config: OwnSamplesConfig, seed_: int) -> Sampling:
    return Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=seed_,
    )


def seed(of: str, index: int) -> int:
    """The same for the same round of the same problem: a restart draws what it drew before."""
    digest = hashlib.sha256(f"{of}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % (1 << _SEED_BITS)


async def _all(samples: Sequence[Coroutine[Any, Any, Trace]]) -> list[Trace]:
    """Side by side; the first error ends the others and is raised as it is."""
    tasks = [asyncio.create_task(sample) for sample in samples]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
