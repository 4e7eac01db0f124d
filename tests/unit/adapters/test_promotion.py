"""What may serve, in which order things happen, and what is refused, on a real SQLite store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from promotions import WHO, A, B, Bench

from opsd.daemon.adapters.promotion import Rescue
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import (
    AdapterError,
    EngineError,
    InvalidInputError,
    NotReadyError,
    StateError,
)
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.runs import RunState


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


async def test_a_rollback_while_the_engine_starts_is_no_failure(store: SqlStore) -> None:
    first = Bench(store)
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    second = Bench(store)
    second.residency.error = NotReadyError("the engine has not been started yet")
    with pytest.raises(NotReadyError):
        await second.promoter.restore()
    outcome = await second.promoter.rollback(**WHO)
    assert outcome.change.incumbent.adapter == "base"
    second.residency.error = None
    await second.promoter.restore()
    assert second.serves() == "base"
    assert second.residency.log == [("ensure", A, "previous")]
    second.residency.error = NotReadyError("the engine has not been started yet")
    with pytest.raises(NotReadyError):  # nothing serves that the engine does not hold
        await second.promoter.rollback(**WHO)
    assert store.get_incumbent().epoch == outcome.change.incumbent.epoch


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
    with pytest.raises(AdapterError, match=f"{B} is what serves: put its files back"):
        await fourth.promoter.restore()
    assert fourth.serves() == "base"


async def test_a_damaged_incumbent_is_rolled_back_if_a_person_ordered_it(
    store: SqlStore,
) -> None:
    first = Bench(store, PromotionConfig(steps=(0.25, 1.0)))
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.advance_canary(**WHO)
    first.candidate(B, incumbent=A)
    await first.promoter.approve(B, **WHO)
    assert store.get_incumbent().canary == B
    await first.promoter.stop()
    second = Bench(store)
    second.corrupt = {A}
    with pytest.raises(InvalidInputError, match="needs a person"):
        await second.promoter.restore(Rescue("", "the disk"))
    assert store.get_incumbent().adapter == A
    row = await second.promoter.restore(Rescue("ann", "the disk"))
    assert (row.adapter, row.canary, second.serves()) == ("base", "", "base")
    entry = store.list_audit(limit=1).items[0]
    assert (entry.action, entry.actor, entry.reason) == ("adapter.rollback", "ann", "the disk")
    before = store.list_audit(limit=2).items[1]
    assert before.action == "adapter.withdraw_canary"
    for one in (entry, before):
        assert json.loads(one.detail_json)["damaged"] == A, "the canary was not damaged"
    await second.promoter.stop()
    third = Bench(store)
    sound = await third.promoter.restore(Rescue("ann", "the disk"))
    assert sound == row, "nothing was damaged: nothing is rolled back"
    await third.promoter.stop()


def test_adapter_rows_are_immutable() -> None:
    adapter = Adapter("n", "s", 1, AdapterState.CANDIDATE, "r", "p", 1, 1.0, 1, "f", 0.0)
    assert replace(adapter, state=AdapterState.INCUMBENT).handle() == adapter.handle()
