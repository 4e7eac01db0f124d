"""Work that goes on by itself: removing what is too old, making old pairs findable."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from prometheus_client import Counter

from opsd.daemon.collect.ports import CurationStore, NearDuplicates
from opsd.daemon.config.collect import RetentionConfig
from opsd.daemon.errors import OpsdError
from opsd.daemon.types.pair_sets import Sweep
from opsd.daemon.types.pairs import PairStatus

log = logging.getLogger(__name__)

RETENTION_ACTOR: Final = "retention"
DAY_S: Final = 86400.0
BANDS_BATCH: Final = 32
PAUSE_FACTOR: Final = 3.0
"""Making bands is work for this process, in which serving runs too: a quarter of its time."""
PAUSE_S: Final = 0.01
"""Between two batches: others come first."""

REMOVED = Counter("opsd_retention_removed_total", "Rows removed for being too old.", ["what"])


class RetentionSweeper:
    """Sweeps at the start and then every ``sweep_every_s``, in small batches.

    With ``near`` it first gives bands to stored pairs that have none, so that near-duplicates of
    them are found.
    """

    def __init__(
        self,
        store: CurationStore,
        config: RetentionConfig,
        near: NearDuplicates | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._config = config
        self._near = near
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def stop(self) -> None:
        """A batch under way is finished."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def sweep(self) -> dict[str, int]:
        """Rows removed, by kind; an audit entry when there were any."""
        config, now = self._config, self._clock()
        removed: dict[str, int] = {}
        for status, days in (
            (PairStatus.VERIFIED, config.verified_days),
            (PairStatus.UNVERIFIED, config.unverified_days),
            (PairStatus.QUARANTINED, config.quarantined_days),
        ):
            if days:
                before = now - days * DAY_S
                removed[f"{status.value} pairs"] = await self._steps(
                    partial(self._expire, status, before)
                )
        if config.attempts_days:
            before = now - config.attempts_days * DAY_S
            removed["attempts"] = await self._steps(
                lambda _: self._store.expire_attempts(before_unix_s=before)
            )
        removed = {what: number for what, number in removed.items() if number}
        for what, number in removed.items():
            REMOVED.labels(what.replace(" ", "_")).inc(number)
        if removed:
            log.info("event=retention %s", " ".join(f"{k!r}={v}" for k, v in removed.items()))
            await asyncio.to_thread(self._audit, removed)
        return removed

    def _expire(self, status: PairStatus, before_unix_s: float, after_seq: int) -> Sweep:
        return self._store.expire_pairs(
            status,
            before_unix_s=before_unix_s,
            after_seq=after_seq,
            erase_trained=self._config.trained == "erase",
            band_keys=None if self._near is None else self._near.band_keys,
        )

    async def fill_bands(self) -> int:
        """Gives bands to pairs that were stored without; how many."""
        if self._near is None:
            return 0
        done = 0
        while True:
            began_s = time.monotonic()
            batch = await asyncio.to_thread(self._fill_some, self._near)
            if not batch:
                return done
            done += batch
            await asyncio.sleep(PAUSE_FACTOR * (time.monotonic() - began_s))

    def _fill_some(self, near: NearDuplicates) -> int:
        pairs = self._store.pairs_without_bands(BANDS_BATCH)
        keys = [(pair.input.id, near.band_keys(pair.input.prompt)) for _, pair in pairs]
        if keys:
            self._store.set_bands(keys)
        return len(keys)

    async def _steps(self, step: Callable[[int], Sweep]) -> int:
        removed = after_seq = 0
        while True:
            done = await asyncio.to_thread(step, after_seq)
            removed += done.num_removed
            if done.is_done:
                return removed
            after_seq = done.last_seq
            await asyncio.sleep(PAUSE_S)

    async def _run(self) -> None:
        while True:
            try:
                await self.fill_bands()
                await self.sweep()
            except OpsdError as error:
                # The store may be back the next time.
                log.warning("event=retention_failed error=%s", error)
            await asyncio.sleep(self._config.sweep_every_s)

    def _audit(self, removed: dict[str, int]) -> None:
        config = self._config
        limits = {
            "verified_days": config.verified_days,
            "unverified_days": config.unverified_days,
            "quarantined_days": config.quarantined_days,
            "attempts_days": config.attempts_days,
            "trained": config.trained,
        }
        self._store.add_audit(
            actor=RETENTION_ACTOR,
            action="retention.sweep",
            subject=", ".join(f"{number} {what}" for what, number in removed.items()),
            reason="older than collect.retention allows",
            detail_json=json.dumps({"removed": removed, "limits": limits}),
        )
