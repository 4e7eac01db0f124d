"""What may serve, in which order things happen, and what is refused, on a real SQLite store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opsd.daemon.adapters.promotion import Promoter
from opsd.daemon.adapters.routing import Router
from opsd.daemon.config.schema import PromotionConfig
from opsd.daemon.errors import AdapterError, EngineError, InvalidInputError, StateError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


class Bench:
    def __init__(self, store: SqlStore, config: PromotionConfig | None = None) -> None:
        self.store = store
        self.router = Router()
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
        self, name: str, verdict: GateVerdict = GateVerdict.PASS, incumbent: str = "base"
    ) -> str:
        """An adapter whose run waits for a person; returns the run's id."""
        run = self.store.create_run(
            Run(
                id=f"{name[-8:]}-0000-4000-8000-000000000000",
                state=RunState.QUEUED,
                trigger=TriggerKind.OPERATOR,
                actor="ann",
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


@pytest.fixture
async def bench(store: SqlStore) -> AsyncIterator[Bench]:
    made = Bench(store)
    yield made
    await made.promoter.stop()


async def settle() -> None:
    """Lets background tasks run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_approval_loads_then_commits_then_routes(bench: Bench) -> None:
    run_id = bench.candidate(A)
    outcome = await bench.promoter.approve(A, **WHO)
    assert bench.residency.log[0] == ("ensure", A, "candidate")
    assert bench.serves() == A
    assert bench.store.get_incumbent().adapter == A
    assert bench.store.get_run(run_id).state is RunState.PROMOTED
    assert outcome.change.incumbent.epoch == 1
    assert outcome.adapter is not None
    assert outcome.adapter.state is AdapterState.INCUMBENT
    entry = bench.store.list_audit(limit=1).items[0]
    assert (entry.id, entry.actor, entry.reason) == (outcome.change.audit_id, "ann", "better")
    assert bench.changes == 1


async def test_an_engine_that_cannot_load_changes_nothing(bench: Bench) -> None:
    bench.candidate(A)
    bench.residency.error = EngineError("out of memory")
    with pytest.raises(EngineError):
        await bench.promoter.approve(A, **WHO)
    assert bench.store.get_incumbent().adapter == "base"
    assert bench.serves() == "base"


async def test_changed_bytes_never_serve(bench: Bench) -> None:
    bench.candidate(A)
    bench.corrupt.add(A)
    with pytest.raises(AdapterError):
        await bench.promoter.approve(A, **WHO)
    assert bench.residency.log == []
    assert bench.store.get_incumbent().adapter == "base"


@pytest.mark.parametrize("reason", ["", "  \n", "x" * 2001])
async def test_a_reason_is_required_and_bounded(bench: Bench, reason: str) -> None:
    bench.candidate(A)
    with pytest.raises(InvalidInputError, match="reason"):
        await bench.promoter.approve(A, actor="ann", reason=reason)
    with pytest.raises(InvalidInputError, match="reason"):
        await bench.promoter.reject(A, actor="ann", reason=reason)
    with pytest.raises(InvalidInputError, match="reason"):
        await bench.promoter.rollback(actor="ann", reason=reason)
    assert bench.store.get_incumbent().adapter == "base"


async def test_gate_decides_what_a_person_may_override(bench: Bench) -> None:
    bench.candidate(A, GateVerdict.FAIL)
    with pytest.raises(StateError, match="failed the gate"):
        await bench.promoter.approve(A, **WHO, override_inconclusive=True)
    bench.candidate(B, GateVerdict.INCONCLUSIVE)
    with pytest.raises(StateError, match="--override-inconclusive"):
        await bench.promoter.approve(B, **WHO)
    assert bench.serves() == "base"
    await bench.promoter.approve(B, **WHO, override_inconclusive=True)
    assert bench.serves() == B


async def test_proof_against_another_incumbent_is_no_proof(bench: Bench) -> None:
    bench.candidate(A)
    bench.candidate(B)  # compared with base as well
    await bench.promoter.approve(A, **WHO)
    with pytest.raises(StateError, match=f"compared with base, but {A} serves"):
        await bench.promoter.approve(B, **WHO)
    await bench.promoter.approve(B, **WHO, override_inconclusive=True)
    assert bench.store.get_incumbent().previous == A


async def test_rejected_and_serving_adapters_are_not_approved(bench: Bench) -> None:
    run_id = bench.candidate(A)
    await bench.promoter.reject(A, **WHO)
    await settle()
    assert ("retire", A, "") in bench.residency.log
    assert bench.store.get_run(run_id).state is RunState.REJECTED
    with pytest.raises(StateError, match="rejected"):
        await bench.promoter.approve(A, **WHO)
    bench.candidate(B)
    await bench.promoter.approve(B, **WHO)
    with pytest.raises(StateError, match="incumbent already"):
        await bench.promoter.approve(B, **WHO)


async def test_rollback_and_forward_again(bench: Bench) -> None:
    with pytest.raises(StateError, match="nothing to roll back"):
        await bench.promoter.rollback(**WHO)
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.promoter.rollback(**WHO)
    assert bench.serves() == "base"
    assert bench.store.get_run(run_id).state is RunState.ROLLED_BACK
    await bench.promoter.approve(A, **WHO)
    assert bench.serves() == A
    await settle()
    assert ("retire", A, "") not in bench.residency.log
    assert bench.store.get_incumbent().epoch == 3
    assert len({entry.id for entry in bench.store.list_audit(limit=50).items}) >= 3


async def test_what_nothing_needs_is_unloaded_and_what_is_one_rollback_away_stays(
    bench: Bench,
) -> None:
    bench.candidate(A)
    bench.candidate(B, incumbent=A)
    third = "opsd-" + "c" * 16
    bench.candidate(third, incumbent=B)
    for name in (A, B):
        await bench.promoter.approve(name, **WHO)
    await settle()
    assert not [line for line in bench.residency.log if line[0] == "retire"]
    await bench.promoter.approve(third, **WHO)
    await settle()
    assert [line for line in bench.residency.log if line[0] == "retire"] == [("retire", A, "")]
    assert bench.store.get_adapter(A).state is AdapterState.RETIRED


async def test_restart_serves_what_the_row_says(store: SqlStore) -> None:
    first = Bench(store)
    first.candidate(A)
    first.candidate(B, incumbent=A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.approve(B, **WHO)
    await first.promoter.stop()
    second = Bench(store)
    row = await second.promoter.restore()
    assert (row.adapter, second.serves()) == (B, B)
    assert second.residency.log == [("ensure", B, "incumbent"), ("ensure", A, "previous")]
    third = Bench(store)
    third.corrupt = {A}
    await third.promoter.restore()
    assert third.serves() == B
    fourth = Bench(store)
    fourth.corrupt = {B}
    with pytest.raises(AdapterError):
        await fourth.promoter.restore()
    assert fourth.serves() == "base"


CANARY = PromotionConfig(canary_share=0.25, canary_duration_s=3600.0)


async def test_canary_shares_traffic_and_a_rollback_withdraws_it(store: SqlStore) -> None:
    bench = Bench(store, CANARY)
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    snapshot = bench.router.snapshot
    assert snapshot.incumbent is None
    assert snapshot.canary is not None
    assert (snapshot.canary.name, snapshot.canary_share) == (A, 0.25)
    assert store.get_run(run_id).state is RunState.CANARY
    await bench.promoter.rollback(**WHO)
    assert bench.router.snapshot.canary is None
    assert store.get_run(run_id).state is RunState.ROLLED_BACK
    assert store.get_incumbent().adapter == "base"
    await bench.promoter.stop()


async def test_canary_is_promoted_when_its_time_is_over(store: SqlStore) -> None:
    bench = Bench(store, replace_duration(CANARY, 0.01))
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.until(lambda: bench.serves() == A)
    assert store.get_run(run_id).state is RunState.PROMOTED
    assert bench.router.snapshot.canary is None
    await bench.promoter.stop()


async def test_canary_is_withdrawn_at_its_first_engine_error(store: SqlStore) -> None:
    bench = Bench(store, CANARY)
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await settle()
    with pytest.raises(EngineError), bench.router.route("r", A):
        raise EngineError("died")
    await bench.until(lambda: bench.router.snapshot.canary is None)
    run = store.get_run(run_id)
    assert run.state is RunState.ROLLED_BACK
    assert store.get_incumbent().adapter == "base"
    assert store.list_audit(limit=1).items[0].actor == "opsd"
    await bench.promoter.stop()


async def test_canary_goes_on_after_a_restart(store: SqlStore) -> None:
    first = Bench(store, CANARY)
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.stop()
    second = Bench(store, replace_duration(CANARY, 0.01))
    await second.promoter.restore()
    await second.until(lambda: second.serves() == A)
    await second.promoter.stop()


def replace_duration(config: PromotionConfig, duration_s: float) -> PromotionConfig:
    return config.model_copy(update={"canary_duration_s": duration_s})


def test_adapter_rows_are_immutable() -> None:
    adapter = Adapter("n", "s", 1, AdapterState.CANDIDATE, "r", "p", 1, 1.0, 1, "f", 0.0)
    assert replace(adapter, state=AdapterState.INCUMBENT).handle() == adapter.handle()
