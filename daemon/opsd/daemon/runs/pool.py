"""The lease of the training devices, as runs hold it."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from opsd.daemon.errors import TrainerFailure
from opsd.daemon.runs.ports import RunsStore
from opsd.daemon.types.runs import Run, RunState

_RENEWALS_PER_TTL: Final = 3
_TRAINS: Final = frozenset({RunState.PREPARING, RunState.TRAINING})


class Pool:
    """One run at a time prepares and trains; its lease is renewed while it does."""

    def __init__(self, store: RunsStore, *, ttl_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._renewed_s: dict[str, float] = {}  # run id → monotonic time

    async def try_lease(self, run: Run) -> str:
        """Leases the pool for a QUEUED run; returns why it has to wait, or "" when it need not."""
        open_runs = await asyncio.to_thread(self._store.open_runs)
        for other in open_runs:
            if other.state in _TRAINS:
                return f"waits for the pool: run {other.id} is {other.state}"
        first = next((other for other in open_runs if other.state is RunState.QUEUED), run)
        if first.id != run.id:
            return f"waits for the pool: run {first.id} came first"
        if run.measure_only:
            # Its seconds are compared: an evaluation beside it would make them longer.
            for other in open_runs:
                if other.state is RunState.EVALUATING:
                    return f"waits to be measured alone: run {other.id} is {other.state}"
        if await self._acquire(run.id):
            return ""
        holder = await self._holder()
        return f"waits for the pool: {holder or 'another holder'} has its lease"

    async def keep(self, run: Run) -> None:
        """Renews the lease when it is due; raises TrainerFailure when another holder has it."""
        due_s = self._renewed_s.get(run.id, float("-inf")) + self._ttl_s / _RENEWALS_PER_TTL
        if time.monotonic() >= due_s and not await self._acquire(run.id):
            raise TrainerFailure(
                f"the pool's lease was lost to {await self._holder() or 'another holder'}: it was "
                f"not renewed for pool.lease_ttl_s = {self._ttl_s:g}"
            )

    async def release(self, run: Run) -> None:
        """A no-op when the run does not hold it."""
        await asyncio.to_thread(self._store.release_pool, run.id)
        self._renewed_s.pop(run.id, None)

    async def _acquire(self, run_id: str) -> bool:
        now_s = time.monotonic()
        lease = await asyncio.to_thread(self._store.acquire_pool, run_id, ttl_s=self._ttl_s)
        if lease is None:
            return False
        self._renewed_s[run_id] = now_s
        return True

    async def _holder(self) -> str:
        lease = await asyncio.to_thread(self._store.pool_lease)
        return lease.holder if lease else ""
