"""Triggers that nobody has to pull: cron, interval, enough new pairs."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from opsd.daemon.config.schema import RunsConfig
from opsd.daemon.errors import OpsdError
from opsd.daemon.runs import metrics
from opsd.daemon.runs.crontab import cron_trigger
from opsd.daemon.runs.ports import RunsStore
from opsd.daemon.runs.states import UNDECIDED_STATES
from opsd.daemon.types.runs import Run, TriggerKind

logger = logging.getLogger(__name__)

SCHEDULER_ACTOR: Final = "scheduler"

_MISFIRE_GRACE_S: Final = 3600
_LOOK_BACK_RUNS: Final = 200
_SOON: Final = timedelta(seconds=1)


class Trigger(Protocol):
    """``RunController.trigger``."""

    async def __call__(self, kind: TriggerKind, *, actor: str, reason: str) -> Run: ...


class RunScheduler:
    """Pulls the configured triggers.

    They never stack: while a run is at work, or on fewer pairs than a run needs, they are skipped.
    """

    def __init__(self, *, store: RunsStore, config: RunsConfig, trigger: Trigger) -> None:
        """Raises ConfigError for a bad crontab expression or time zone."""
        self._store = store
        self._config = config
        self._trigger = trigger
        self._verified_at_trigger = 0
        self._scheduler = AsyncIOScheduler(
            timezone=UTC,
            job_defaults={
                "coalesce": True,
                "max_instances": 1,
                "misfire_grace_time": _MISFIRE_GRACE_S,
            },
        )
        self._cron = (
            cron_trigger(config.triggers.cron, config.triggers.timezone)
            if config.triggers.cron
            else None
        )

    async def start(self) -> None:
        """Counts the interval from the last run it made, so that restarts do not put it off."""
        triggers = self._config.triggers
        if self._cron is not None:
            self._scheduler.add_job(self._on_cron, self._cron, id="cron")
        if triggers.interval_s:
            self._scheduler.add_job(
                self._on_interval,
                "interval",
                id="interval",
                seconds=triggers.interval_s,
                next_run_time=await self._next_interval(triggers.interval_s),
            )
        if triggers.new_pairs:
            self._scheduler.add_job(
                self._on_new_pairs, "interval", id="new_pairs", seconds=triggers.check_every_s
            )
        self._scheduler.start()

    async def stop(self) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
            # The scheduler of an event loop shuts down in the loop's next turn.
            await asyncio.sleep(0)

    async def _on_cron(self) -> None:
        await self._pull(TriggerKind.CRON, f"cron {self._config.triggers.cron}")

    async def _on_interval(self) -> None:
        await self._pull(TriggerKind.INTERVAL, f"every {self._config.triggers.interval_s:g} s")

    async def _on_new_pairs(self) -> None:
        try:
            counts = await asyncio.to_thread(self._store.count_pairs)
        except OpsdError as error:
            logger.warning("new pairs could not be counted error=%s", error)
            return
        need = self._config.triggers.new_pairs
        # Counted from the last trigger too: a run that failed before its snapshot is not tried
        # again on the same pairs.
        grown = counts.verified - self._verified_at_trigger
        if counts.new_since_last_run < need or grown < need:
            return
        run = await self._pull(
            TriggerKind.NEW_PAIRS, f"{counts.new_since_last_run} new verified pairs"
        )
        if run is not None:
            self._verified_at_trigger = counts.verified

    async def _pull(self, kind: TriggerKind, reason: str) -> Run | None:
        """None when the trigger is skipped; a scheduled job never raises."""
        try:
            obstacle = await asyncio.to_thread(self._obstacle)
            if obstacle:
                metrics.triggers_total.labels(kind.value, "skipped").inc()
                logger.info("trigger skipped kind=%s reason=%s", kind, obstacle)
                return None
            return await self._trigger(kind, actor=SCHEDULER_ACTOR, reason=reason)
        except OpsdError as error:
            logger.error("trigger failed kind=%s error=%s", kind, error)
            return None

    def _obstacle(self) -> str:
        for run in self._store.open_runs():
            if run.state in UNDECIDED_STATES:
                return f"run {run.id} is {run.state}"
        verified = self._store.count_pairs().verified
        if verified < self._config.min_pairs:
            return f"{verified} verified pairs, runs.min_pairs is {self._config.min_pairs}"
        return ""

    async def _next_interval(self, interval_s: float) -> datetime:
        now = datetime.now(UTC)
        page = await asyncio.to_thread(self._store.list_runs, limit=_LOOK_BACK_RUNS)
        made_s = [r.created_unix_s for r in page.items if r.trigger is TriggerKind.INTERVAL]
        if not made_s:
            return now + timedelta(seconds=interval_s)
        due = datetime.fromtimestamp(max(made_s) + interval_s, UTC)
        return max(due, now + _SOON)
