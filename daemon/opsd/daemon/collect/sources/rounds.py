"""Rounds of samples on problems that are due; where a round stands is in the store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from opsd.daemon.collect.ports import HeldOut
from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.config.sources import OwnSamplesConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.store.sources_api import ProblemStore
from opsd.daemon.types.problems import Answerable, Problem, ProblemState, Round

log = logging.getLogger(__name__)

Attempt = Callable[[Problem], Awaitable[Round]]


class Source(Protocol):
    """Something that makes pairs, one step at a time."""

    @property
    def name(self) -> str: ...

    @property
    def doing(self) -> str:
        """In words, for people."""
        ...

    async def step(self) -> bool:
        """False: there is nothing to do for now."""
        ...


class Rounds:
    """Takes problems that are due and has ``attempt`` make one round on each, some side by side.

    A round counts once it is recorded: one that is cut off by a stop, a crash or users is made
    again, with the same seeds. A held-out problem is never sampled, whenever its suite came.
    """

    def __init__(
        self,
        answerable: Answerable,
        attempt: Attempt,
        *,
        store: ProblemStore,
        held_out: HeldOut,
        maker: PairMaker,
        config: OwnSamplesConfig,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._answerable = answerable
        self._attempt = attempt
        self._store = store
        self._held_out = held_out
        self._maker = maker
        self._config = config
        self._clock = clock
        self.doing = "has not begun"

    @property
    def name(self) -> str:
        return self._maker.source

    async def step(self) -> bool:
        """One round on every problem that is due, as many as may run at once and the quota leaves.

        Raises EngineError, NotReadyError, OverloadedError or StoreError: to be tried again.
        """
        left = self._maker.daily_quota - await self._maker.made_today()
        if left <= 0:
            self.doing = f"waits: {self._maker.daily_quota} pairs in 24 hours is its quota"
            return False
        due = await asyncio.to_thread(
            self._store.due_problems,
            self._answerable,
            now_unix_s=self._clock(),
            limit=min(left, self._config.problems_at_once),
        )
        if not due:
            self.doing = "waits: no problem is due"
            return False
        self.doing = f"samples {len(due)} problem{'s' if len(due) > 1 else ''}"
        tasks = [asyncio.create_task(self._round(problem)) for problem in due]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def _round(self, problem: Problem) -> None:
        suite = self._held_out.is_held_out(problem.input.prompt)
        if suite is not None:
            note = f"a held-out problem of suite {suite!r}: never attempted"
            done = Round(problem.input.id, 0, 0, ProblemState.HELD_OUT, note)
        else:
            try:
                done = await self._attempt(problem)
            except InvalidInputError as error:
                done = Round(problem.input.id, 0, 0, ProblemState.GIVEN_UP, str(error))
            except TimeoutError:
                why = f"not done within sample_timeout_s ({self._config.sample_timeout_s:g} s)"
                retry = self._clock() + self._config.retry_after_s
                done = Round(problem.input.id, 0, 0, ProblemState.OPEN, why, next_try_unix_s=retry)
        await asyncio.to_thread(self._store.record_round, done)
        metrics.ROUNDS.labels(self.name, done.state.value).inc()
        log.info(
            "source=%s problem=%s state=%s attempts=%d solves=%d note=%r",
            self.name,
            done.problem_id,
            done.state,
            done.attempts,
            done.solves,
            done.note,
        )


def round_name(problem: Problem) -> str:
    """What the seeds of the problem's next round follow from."""
    return f"{problem.input.id}:{problem.tries}"
