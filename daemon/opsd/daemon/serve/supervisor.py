"""Brings a dead engine back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from opsd.daemon.errors import OpsdError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.types.engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``max_attempts`` restarts in a row; an engine that stays up for ``stable_s`` clears the
    count.
    """

    max_attempts: int = 5
    first_delay_s: float = 0.1
    max_delay_s: float = 30.0
    stable_s: float = 60.0
    poll_s: float = 0.1

    def delay_s(self, attempt: int) -> float:
        """Before the attempt, counted from 1: doubles each time."""
        return min(self.max_delay_s, self.first_delay_s * 2.0 ** (attempt - 1))


class Supervisor:
    """Watches the engine; at its death it starts a new one and has its adapters loaded again.

    ``reload`` must have loaded everything that is routed to when it returns. The first start is the
    caller's: start the engine, load and route, set READY, then ``watch``.
    """

    def __init__(
        self,
        engine: Engine,
        reload: Callable[[], Awaitable[None]],
        availability: Availability,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._engine = engine
        self._reload = reload
        self._availability = availability
        self._policy = policy or RestartPolicy()
        self._task: asyncio.Task[None] | None = None
        self._attempts = 0
        self._ready_since = time.monotonic()
        self.failed = asyncio.Event()
        """Set when the engine was given up."""

    def watch(self) -> None:
        """Starts watching, in the background."""
        assert self._task is None, "watched already"
        self._ready_since = time.monotonic()
        self._task = asyncio.create_task(self._run(), name="engine-supervisor")

    async def stop(self) -> None:
        """Stops watching; the engine is left as it is."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._policy.poll_s)
            health = await self._engine.health()
            if health.healthy:
                continue
            if self._availability.state is ServingState.DRAINING:
                return
            if time.monotonic() - self._ready_since >= self._policy.stable_s:
                self._attempts = 0
            if not await self._recover(health.message):
                return

    async def _recover(self, reason: str) -> bool:
        """True once it serves again; False when it was given up."""
        while self._attempts < self._policy.max_attempts:
            self._attempts += 1
            count = f"attempt {self._attempts} of {self._policy.max_attempts}"
            self._availability.set(ServingState.STARTING, f"{reason}; restarting it, {count}")
            log.error("engine down reason=%s attempt=%d", reason, self._attempts)
            await asyncio.sleep(self._policy.delay_s(self._attempts))
            try:
                started = time.monotonic()
                await self._engine.start()
                await self._reload()
            except OpsdError as error:
                reason = str(error)
                metrics.ENGINE_RESTARTS.labels("failed").inc()
                continue
            except Exception:
                log.exception("engine restart failed attempt=%d", self._attempts)
                reason = "an unexpected error, see the log"
                metrics.ENGINE_RESTARTS.labels("failed").inc()
                continue
            metrics.ENGINE_RESTARTS.labels("ok").inc()
            log.info("engine back restart_s=%.1f", time.monotonic() - started)
            self._ready_since = time.monotonic()
            if self._availability.state is not ServingState.DRAINING:
                self._availability.set(ServingState.READY)
            return True
        self._availability.set(
            ServingState.FAILED,
            f"the engine could not be brought back in {self._policy.max_attempts} attempts "
            f"({reason}); mend the cause and restart the daemon",
        )
        self.failed.set()
        return False
