"""Runs the sources that use the model's own samples, each in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.collect.sources.ports import Ready
from opsd.daemon.collect.sources.rounds import Source
from opsd.daemon.store.sources_api import ProblemStore
from opsd.daemon.types.problems import Answerable

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class SourcePart:
    """A source with what is known about it beside its steps."""

    source: Source
    maker: PairMaker
    answerable: Answerable
    enabled: bool


@dataclass(frozen=True, slots=True)
class SourceState:
    """What a source does now."""

    name: str
    enabled: bool
    doing: str
    pairs_today: int
    daily_quota: int
    problems_open: int
    last_error: str


class SourceDriver:
    """Has enabled sources make steps while the engine serves. A step that fails is made again after
    a pause that doubles up to a minute; what a source has done is in the store."""

    def __init__(
        self,
        parts: Sequence[SourcePart],
        store: ProblemStore,
        ready: Ready,
        *,
        pause_s: float = 1.0,
    ) -> None:
        """``pause_s``: after a step that found nothing to do, or failed for the first time."""
        self._parts = tuple(parts)
        self._store = store
        self._ready = ready
        self._pause_s = pause_s
        self._errors: dict[str, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        assert not self._tasks, "started already"
        self._tasks = [
            asyncio.create_task(self._run(part.source), name=f"source-{part.source.name}")
            for part in self._parts
            if part.enabled
        ]

    async def stop(self) -> None:
        """Rounds under way are dropped; they are made again after the next start."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        self._tasks = []

    async def states(self) -> list[SourceState]:
        open_problems = await asyncio.to_thread(self._store.count_open_problems)
        return [
            SourceState(
                name=part.source.name,
                enabled=part.enabled,
                doing=part.source.doing if part.enabled else "is off",
                pairs_today=await part.maker.made_today(),
                daily_quota=part.maker.daily_quota,
                problems_open=open_problems[part.answerable],
                last_error=self._errors.get(part.source.name, ""),
            )
            for part in self._parts
        ]

    async def _run(self, source: Source) -> None:
        pause_s = self._pause_s
        while True:
            if not self._ready.is_ready:
                await asyncio.sleep(self._pause_s)
                continue
            try:
                busy = await source.step()
            except Exception as error:
                # One source must not end for what the next step may do better; it is told of.
                metrics.ERRORS.labels(source.name).inc()
                self._errors[source.name] = f"{type(error).__name__}: {error}"
                log.exception("source=%s step failed, again in %g s", source.name, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
                continue
            pause_s = self._pause_s
            self._errors.pop(source.name, None)
            if not busy:
                await asyncio.sleep(self._pause_s)
