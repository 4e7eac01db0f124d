"""Watches the canary: takes in what is observed, keeps it, and says when to move."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

from opsd.daemon.adapters import metrics
from opsd.daemon.adapters.canary_rules import Decision, Move, decide
from opsd.daemon.adapters.canary_statistics import CanaryStatistics
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import NotFoundError, OpsdError, StoreError
from opsd.daemon.store.api import CanaryStore
from opsd.daemon.types.adapters import Incumbent
from opsd.daemon.types.canary import (
    Assignment,
    AttemptOutcome,
    Canary,
    CanaryPlan,
    Metric,
    Reply,
)
from opsd.daemon.types.pairs import Attempt

log = logging.getLogger(__name__)

POLL_S = 0.5
SAVE_EVERY_S = 2.0
_OUTCOMES_A_LOOK = 1000


class WatchStore(CanaryStore, Protocol):
    """What the watch reads and writes."""

    def get_attempt(self, attempt_id: str) -> Attempt: ...


class OutcomeFeed(Protocol):
    """What became known of attempts after they went out."""

    def since(self, seq: int, limit: int) -> Sequence[AttemptOutcome]:
        """The outcomes after ``seq``, in order, at most ``limit``; called from a thread."""
        ...


class NoOutcomes:
    """Nobody sends outcomes."""

    def since(self, seq: int, limit: int) -> Sequence[AttemptOutcome]:
        return ()


Act = Callable[[str, Decision], Awaitable[None]]
"""Takes the canary's name and what is to be done with it."""


class CanaryWatch:
    """The one canary's statistics, while there is one. For one event loop."""

    def __init__(
        self,
        store: WatchStore,
        config: PromotionConfig,
        act: Act,
        outcomes: OutcomeFeed | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._act = act
        self._outcomes = outcomes or NoOutcomes()
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._row: Incumbent | None = None
        self.canary: Canary | None = None
        self.statistics: CanaryStatistics | None = None

    @property
    def plan(self) -> CanaryPlan:
        assert self.statistics is not None, "there is no canary"
        return self.statistics.plan

    async def follow(self, row: Incumbent) -> None:
        """Watches the row's canary from now on, with all that is stored of it; none: stops."""
        self._row = row
        if not row.canary:
            await self.stop()
            return
        canary = await asyncio.to_thread(self._store.get_canary, row.canary)
        if self.canary is None or self.canary.id != canary.id or self.statistics is None:
            await self.stop()
            self._row = row
            callers = await asyncio.to_thread(self._store.canary_callers, canary.id)
            self.statistics = CanaryStatistics.load(
                self._plan_of(canary, row), canary.statistics_json, callers
            )
        elif self.canary.step != canary.step:
            self.statistics.step_began()
        self.canary = canary
        self._publish()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="canary")

    async def stop(self) -> None:
        """Keeps what is known; changes nothing of what serves."""
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if self.statistics is not None and self.statistics.changed:
            with suppress(StoreError):
                await self.save()
        self.canary = self.statistics = self._row = None
        metrics.CANARY_STEP.set(0)
        metrics.CANARY_SHARE.set(0)

    # What is observed

    def replied(self, drawn: Assignment, reply: Reply) -> None:
        if self.statistics is not None and self._watches(drawn.canary):
            self.statistics.replied(drawn, reply)

    def mirrored(self, canary: str, incumbent: Reply, mirror: Reply) -> None:
        if self.statistics is not None and self._watches(canary):
            self.statistics.mirrored(incumbent, mirror)

    def _watches(self, name: str) -> bool:
        return self.canary is not None and self.canary.adapter == name

    # What follows

    def decision(self) -> Decision:
        canary, statistics = self._watched()
        return decide(
            statistics,
            step=canary.step,
            started_unix_s=canary.started_unix_s,
            step_started_unix_s=canary.step_started_unix_s,
            now_unix_s=self._clock(),
        )

    def detail(self) -> dict[str, object]:
        """The numbers, for the audit entry."""
        canary, known = self._watched()
        return {
            "step": canary.step,
            "plan": asdict(known.plan),
            "e_value": known.e_value,
            "metrics": {
                metric.value: {
                    "canary": [compared.num_canary, compared.mean_canary],
                    "incumbent": [compared.num_incumbent, compared.mean_incumbent],
                    "pairs": [compared.num_pairs, compared.mean_pair],
                    "harm_e_value": compared.harm.e_value,
                    "safe_e_value": compared.safe.e_value,
                }
                for metric, compared in known.comparisons.items()
            },
        }

    def _watched(self) -> tuple[Canary, CanaryStatistics]:
        assert self.canary is not None, "there is no canary"
        assert self.statistics is not None, "there is no canary"
        return self.canary, self.statistics

    async def _run(self) -> None:
        saved = time.monotonic()
        # One that ended its canary itself leaves the next one to the task made for it.
        while self._task is asyncio.current_task() and self.statistics is not None:
            try:
                await self._read_outcomes()
                decision = self.decision()
                moves = decision.move is not Move.HOLD
                if moves or time.monotonic() - saved >= SAVE_EVERY_S:
                    saved = time.monotonic()
                    await self.save()
                    self._publish()
                if moves:
                    await self._act(self._watched()[0].adapter, decision)
            except OpsdError as error:
                log.warning("canary is looked at again error=%s", error)
            except Exception:
                log.exception("canary could not be looked at")
            await asyncio.sleep(POLL_S)

    async def _read_outcomes(self) -> None:
        canary, statistics = self._watched()
        assert self._row is not None, "the row came with the canary"
        serving = {canary.adapter, self._row.adapter}
        found = await asyncio.to_thread(
            self._outcomes.since, statistics.last_outcome_seq, _OUTCOMES_A_LOOK
        )
        for outcome in found:
            statistics.last_outcome_seq = outcome.seq
            statistics.changed = True
            if not outcome.verified or outcome.adapter not in serving:
                continue
            try:
                attempt = await asyncio.to_thread(self._store.get_attempt, outcome.attempt_id)
            except NotFoundError:
                continue
            if attempt.canary_share is None or attempt.created_unix_s < canary.started_unix_s:
                continue
            statistics.outcome(
                outcome.ok,
                in_canary=outcome.adapter == canary.adapter,
                share=attempt.canary_share,
                caller=attempt.caller,
            )

    async def save(self) -> None:
        """Keeps what is known, while the canary runs; raises StoreError."""
        if self.canary is None or self.statistics is None or not self.statistics.changed:
            return
        statistics = self.statistics
        callers = statistics.take_new_callers()
        text = statistics.dump()
        try:
            await asyncio.to_thread(self._store.save_canary, self.canary.id, text, callers)
        except StoreError:
            statistics.put_back(callers)
            raise

    def _plan_of(self, canary: Canary, row: Incumbent) -> CanaryPlan:
        kept = plan_of(canary)
        if kept is not None:
            return kept
        # It was begun by a version that kept no plan.
        config = self._config
        if not config.wants_canary:
            config = config.model_copy(update={"steps": (row.canary_share, 1.0)})
        return config.plan()

    def _publish(self) -> None:
        if self.canary is None or self.statistics is None:
            return
        metrics.CANARY_STEP.set(self.canary.step + 1)
        metrics.CANARY_SHARE.set(self.plan.steps[self.canary.step])
        for metric in Metric:
            compared = self.statistics.comparisons[metric]
            metrics.CANARY_HARM.labels(metric.value).set(compared.harm.e_value)
            metrics.CANARY_SAFE.labels(metric.value).set(compared.safe.e_value)
            for arm, number in (
                ("canary", compared.num_canary),
                ("incumbent", compared.num_incumbent),
                ("pair", compared.num_pairs),
            ):
                metrics.CANARY_OBSERVATIONS.labels(metric.value, arm).set(number)


def plan_json(plan: CanaryPlan) -> str:
    """As the canary's row keeps it."""
    return json.dumps(asdict(plan), sort_keys=True)


def plan_of(canary: Canary) -> CanaryPlan | None:
    """None: it was begun by a version that kept no plan."""
    kept = json.loads(canary.plan_json)
    if not kept:
        return None
    lists = {name: tuple(kept[name]) for name in ("steps", "must_prove")}
    return CanaryPlan(**kept | lists)
