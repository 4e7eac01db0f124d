"""Candidates that nobody decides on: ended by the clock, or approved by policy."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from opsd.daemon.adapters.approvals import Approvals, Pending
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import OpsdError, StateError
from opsd.daemon.types.gate import GateVerdict

log = logging.getLogger(__name__)

EVERY_S = 5.0

Act = Callable[[Pending, str], Awaitable[object]]
"""Takes the candidate and the reason."""


class PendingSweep:
    """Looks at what is pending every few seconds."""

    def __init__(
        self, approvals: Approvals, config: PromotionConfig, *, expire: Act, approve: Act
    ) -> None:
        self._approvals = approvals
        self._config = config
        self._expire = expire
        self._approve = approve
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._run(), name="pending-candidates")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def look(self) -> None:
        """Once; raises OpsdError when the store cannot be read."""
        for candidate in await self._approvals.pending():
            try:
                await self._look_at(candidate)
            except StateError as error:
                # Somebody was faster, or a canary runs.
                log.info(
                    "candidate stays as it is adapter=%s reason=%s", candidate.adapter.name, error
                )

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except OpsdError as error:
                log.warning("pending candidates are looked at again error=%s", error)
            except Exception:
                log.exception("pending candidates could not be looked at")
            await asyncio.sleep(EVERY_S)

    async def _look_at(self, candidate: Pending) -> None:
        passed = candidate.report.verdict is GateVerdict.PASS
        if candidate.expires_unix_s and time.time() >= candidate.expires_unix_s:
            await self._expire(
                candidate,
                "expired: nobody decided within promotion.approval_expires_s "
                f"({self._config.approval_expires_s:g} s); votes for it: {len(candidate.votes)} of "
                f"{candidate.required}",
            )
        elif self._config.auto_promote_passes and passed and not candidate.doubt:
            await self._approve(
                candidate,
                "policy promotion.auto_promote_passes: the gate passed it: "
                f"{candidate.report.explanation}"[:2000],
            )
