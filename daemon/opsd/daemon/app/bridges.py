"""Small pieces that fit one part's port to another part."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.serve.state import Availability
from opsd.daemon.store.api import AdapterStore
from opsd.daemon.store.sources_api import OutcomeStore
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.canary import AttemptOutcome
from opsd.daemon.types.engine import BASE, AdapterHandle
from opsd.daemon.types.gate import GateReport, Measurement
from opsd.daemon.types.problems import AttemptOutcomeKind
from opsd.daemon.types.runs import Run


class StoredOutcomes:
    """Implements ``adapters.canary.OutcomeFeed``."""

    def __init__(self, store: OutcomeStore) -> None:
        self._store = store

    def since(self, seq: int, limit: int) -> list[AttemptOutcome]:
        return [
            AttemptOutcome(
                seq=found.seq,
                attempt_id=found.attempt_id,
                adapter=found.adapter,
                ok=found.outcome is AttemptOutcomeKind.ACCEPTED,
                verified=found.verified,
            )
            for found in self._store.attempt_outcomes_since(seq, limit=limit)
        ]


class IncumbentEvaluator:
    """The gate as runs see it: the comparison is with whatever serves when it begins."""

    def __init__(
        self, gate: GateEvaluator, store: AdapterStore, availability: Availability
    ) -> None:
        self._gate = gate
        self._store = store
        self._availability = availability

    def num_items(self) -> int:
        return self._gate.num_items()

    def num_target_items(self) -> int:
        return self._gate.num_target_items()

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Callable[[int, int], None]
    ) -> list[Measurement]:
        """Raises NotReadyError while the engine is down: the run waits for it."""
        self._availability.require_ready()
        return await self._gate.measure(run, adapter, on_progress)

    async def evaluate(
        self, run: Run, candidate: Adapter, on_progress: Callable[[int, int], None]
    ) -> GateReport:
        """Raises NotReadyError while the engine is down: the run waits for it."""
        self._availability.require_ready()
        row = await asyncio.to_thread(self._store.get_incumbent)
        incumbent = None
        if row.adapter != BASE:
            incumbent = (await asyncio.to_thread(self._store.get_adapter, row.adapter)).handle()
        return await self._gate.evaluate(run, candidate, incumbent, on_progress)
