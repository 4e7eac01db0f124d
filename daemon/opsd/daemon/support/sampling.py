"""Samples attempts of a run from the engine that serves, in whatever room the users leave."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from opsd.daemon.errors import EngineError, NotReadyError, OpsdError
from opsd.daemon.support import metrics
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.ports import Readiness
from opsd.daemon.types.engine import (
    AdapterHandle,
    Engine,
    EngineChunk,
    EngineRequest,
    FinishReason,
    Sampling,
)

PRIORITY = 20
"""Below users, who are 0, and below held-out evaluation, which is 10."""

# An interrupted sample loses what has not been told of yet; every message costs the event loop.
_TOKENS_PER_CHUNK = 8
_SEED_BITS = 63


@dataclass(frozen=True, slots=True)
class SampleJob:
    """Prompts to be answered with one adapter; checked already."""

    run_id: str
    adapter: AdapterHandle | None  # None: base
    prompts: Sequence[tuple[tuple[int, ...], int]]  # token ids, seed
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    stop_token_ids: tuple[int, ...]


@dataclass(slots=True)
class Sample:
    """An attempt, whole or as far as it has come."""

    index: int  # of the prompt
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason | None = None

    def add(self, chunk: EngineChunk) -> None:
        self.token_ids += chunk.token_ids
        self.logprobs += chunk.logprobs
        self.finish = chunk.finish_reason
        metrics.TOKENS.inc(len(chunk.token_ids))


class AttemptSampler:
    """Every sample is one request to the engine, unless users interrupt it: then it goes on later,
    from its last token, as another request with a seed derived from the place.
    """

    def __init__(
        self,
        engine: Engine,
        admission: Admission,
        readiness: Readiness,
        *,
        recovery_timeout_s: float = 300.0,
        poll_interval_s: float = 0.1,
        failures: int = 3,
    ) -> None:
        """``recovery_timeout_s``: how long an engine that died may take to come back;
        ``failures``: how often it may die under one sample.
        """
        self._engine = engine
        self._admission = admission
        self._readiness = readiness
        self._recovery_timeout_s = recovery_timeout_s
        self._poll_interval_s = poll_interval_s
        self._failures = failures

    async def sample(self, job: SampleJob) -> AsyncIterator[Sample]:
        """Attempts in the order in which they end. Closing the iterator ends the engine's work.

        Raises InvalidInputError (a prompt that fills the context), EngineError (the engine stays
        down) or StateError (the adapter is not loaded any more).
        """
        finished: asyncio.Queue[Sample] = asyncio.Queue()

        async def attempt(index: int, turn: int) -> None:
            sample = Sample(index)
            try:
                await self._attempt(job, sample, turn)
            except asyncio.CancelledError:
                metrics.ATTEMPTS.labels("cancelled").inc()
                raise
            except OpsdError:
                metrics.ATTEMPTS.labels("failed").inc()
                raise
            metrics.ATTEMPTS.labels("done").inc()
            finished.put_nowait(sample)

        tasks = [
            asyncio.create_task(attempt(index, self._admission.next_turn()))
            for index in range(len(job.prompts))
        ]
        try:
            async for sample in _as_they_end(tasks, finished):
                yield sample
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _attempt(self, job: SampleJob, sample: Sample, turn: int) -> None:
        failures = 0
        while sample.finish is None:
            try:
                interrupted = await self._stretch(job, sample, turn)
            except (EngineError, NotReadyError) as error:
                failures += 1
                if failures >= self._failures:
                    raise
                await self._until_ready(error)
                continue
            if interrupted:
                metrics.ATTEMPTS.labels("interrupted").inc()
            elif sample.finish is None:
                raise EngineError("the engine ended a sample without saying why")

    async def _stretch(self, job: SampleJob, sample: Sample, turn: int) -> bool:
        """Goes on with the sample; True when users took its place before its end."""
        async with self._admission.room(turn) as permit:
            work = asyncio.create_task(self._generate(_request(job, sample), sample.add))
            permit.on_revoke(work.cancel)
            try:
                await asyncio.wait({work})
            finally:
                # The place is free only when the engine has been told.
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
            if work.cancelled():
                return True
            work.result()
            return False

    async def _generate(self, request: EngineRequest, add: Callable[[EngineChunk], None]) -> None:
        async with aclosing(self._engine.generate(request)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                add(chunk)

    async def _until_ready(self, cause: OpsdError) -> None:
        # The supervisor needs a moment to notice that the engine died.
        await asyncio.sleep(self._poll_interval_s)
        try:
            async with asyncio.timeout(self._recovery_timeout_s):
                while not await self._is_back():  # noqa: ASYNC110 - ports, no event
                    await asyncio.sleep(self._poll_interval_s)
        except TimeoutError:
            raise EngineError(
                f"sampling stopped: the engine stayed down for {self._recovery_timeout_s:g} s "
                f"({cause})"
            ) from cause

    async def _is_back(self) -> bool:
        return self._readiness.is_ready and (await self._engine.health()).healthy


async def _as_they_end(
    tasks: list[asyncio.Task[None]], finished: asyncio.Queue[Sample]
) -> AsyncIterator[Sample]:
    """What the tasks put into the queue; raises the first error of a task."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        while not finished.empty():
            yield finished.get_nowait()


def _request(job: SampleJob, sample: Sample) -> EngineRequest:
    prompt, seed = job.prompts[sample.index]
    done = len(sample.token_ids)
    return EngineRequest(
        request_id=f"run-{job.run_id}-{uuid.uuid4().hex}",
        sampling=Sampling(
            max_tokens=job.max_new_tokens - done,
            temperature=job.temperature,
            top_p=job.top_p,
            top_k=job.top_k,
            seed=seed_at(seed, done),
            stop_token_ids=job.stop_token_ids,
            # What ends an attempt is the trainer's to say.
            ignore_eos=True,
            logprobs=True,
        ),
        prompt_ids=(*prompt, *sample.token_ids),
        adapter=job.adapter,
        priority=PRIORITY,
        tokens_per_chunk=_TOKENS_PER_CHUNK,
    )


def seed_at(seed: int, num_tokens: int) -> int:
    """The engine's seed for a sample that goes on after so many tokens; at 0, the sample's own."""
    if num_tokens == 0:
        return seed % (1 << _SEED_BITS)
    digest = hashlib.sha256(f"{seed}:{num_tokens}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % (1 << _SEED_BITS)
