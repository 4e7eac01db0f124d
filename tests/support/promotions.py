"""A promoter on a real store, with a router and an engine that is only remembered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from opsd.daemon.adapters.promotion import Promoter
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import AdapterError
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.canary import AttemptOutcome
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.daemon.types.runs import Run, RunState, TriggerKind

A = "opsd-" + "a" * 16
B = "opsd-" + "b" * 16
WHO: dict[str, Any] = {"actor": "ann", "reason": "better"}


class RecordingResidency:
    """Stands for the engine's slots: remembers what was asked, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    async def ensure(self, handle: AdapterHandle, role: str) -> None:
        if self.error is not None:
            raise self.error
        self.log.append(("ensure", handle.name, role))

    async def retire(self, name: str) -> None:
        self.log.append(("retire", name, ""))


class ListedOutcomes:
    """An outcome feed that a test fills."""

    def __init__(self) -> None:
        self.items: list[AttemptOutcome] = []

    def add(self, attempt_id: str, adapter: str, *, ok: bool, verified: bool = True) -> None:
        self.items.append(AttemptOutcome(len(self.items) + 1, attempt_id, adapter, ok, verified))

    def since(self, seq: int, limit: int) -> list[AttemptOutcome]:
        return [item for item in self.items if item.seq > seq][:limit]


class Bench:
    def __init__(self, store: SqlStore, config: PromotionConfig | None = None) -> None:
        self.store = store
        self.router = Router()
        self.outcomes = ListedOutcomes()
        self.residency = RecordingResidency()
        self.corrupt: set[str] = set()
        self.changes = 0
        self.event = asyncio.Event()
        self.promoter = Promoter(
            store,
            self.residency,
            self.router,
            config or PromotionConfig(),
            verify=self.verify,
            on_change=self.changed,
            outcomes=self.outcomes,
        )

    def verify(self, adapter: Adapter) -> None:
        if adapter.name in self.corrupt:
            raise AdapterError(f"{adapter.name}: digest differs")

    def changed(self) -> None:
        self.changes += 1
        self.event.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self.event.clear()
                await self.event.wait()

    def serves(self) -> str:
        incumbent = self.router.snapshot.incumbent
        return incumbent.name if incumbent else "base"

    def candidate(
        self,
        name: str,
        verdict: GateVerdict = GateVerdict.PASS,
        incumbent: str = "base",
        proposer: str = "ann",
    ) -> str:
        """An adapter whose run waits for a person; returns the run's id."""
        run = self.store.create_run(
            Run(
                id=f"{name[-8:]}-0000-4000-8000-000000000000",
                state=RunState.QUEUED,
                trigger=TriggerKind.OPERATOR,
                actor=proposer,
                reason="test",
                created_unix_s=time.time(),
                updated_unix_s=time.time(),
            )
        )
        self.store.add_adapter(
            Adapter(
                name=name,
                sha256=name[-1] * 64,
                lora_id=0,
                state=AdapterState.CANDIDATE,
                run_id=run.id,
                path=f"/adapters/{name}",
                rank=8,
                alpha=16.0,
                size_bytes=1,
                model_fingerprint="f",
                created_unix_s=time.time(),
            )
        )
        states = (
            RunState.PREPARING,
            RunState.TRAINING,
            RunState.EVALUATING,
            RunState.AWAITING_APPROVAL,
        )
        state = RunState.QUEUED
        for following in states:
            self.store.transition_run(
                run.id, expected=state, to=following, reason="", candidate=name
            )
            state = following
        self.store.save_gate(
            GateReport(run.id, name, incumbent, verdict, "its numbers.", (), 0.0, 1.0)
        )
        return run.id
