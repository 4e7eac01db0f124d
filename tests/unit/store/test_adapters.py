"""What serves is one row, and every change of it is whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from opsd.daemon.errors import (
    ConcurrentChangeError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import BASE
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.daemon.types.runs import Run, RunState

MakeAdapter = Callable[..., Adapter]
MakeRun = Callable[..., Run]

PATH = [RunState.PREPARING, RunState.TRAINING, RunState.EVALUATING, RunState.AWAITING_APPROVAL]


@pytest.fixture
def candidate(
    store: SqlStore, make_adapter: MakeAdapter, make_run: MakeRun
) -> Callable[[], Adapter]:
    """A candidate whose run waits for approval."""

    def make() -> Adapter:
        run = store.create_run(make_run())
        at = RunState.QUEUED
        for state in PATH:
            store.transition_run(run.id, expected=at, to=state, reason="on")
            at = state
        return store.add_adapter(make_adapter(run.id))

    return make


def promote(store: SqlStore, name: str) -> Incumbent:
    epoch = store.get_incumbent().epoch
    return store.promote(name, expected_epoch=epoch, actor="ana", reason="good").incumbent


def rollback(store: SqlStore) -> Incumbent:
    epoch = store.get_incumbent().epoch
    return store.rollback(expected_epoch=epoch, actor="ana", reason="bad").incumbent


def state_of(store: SqlStore, adapter: Adapter) -> AdapterState:
    return store.get_adapter(adapter.name).state


def test_base_serves_at_first(store: SqlStore) -> None:
    assert store.get_incumbent() == Incumbent()


def test_ids_grow_and_the_same_adapter_keeps_its_own(
    store: SqlStore, make_adapter: MakeAdapter
) -> None:
    first, second = make_adapter(), make_adapter()
    stored = store.add_adapter(first)
    assert stored == replace(first, lora_id=stored.lora_id)
    assert stored.lora_id > 0
    assert store.add_adapter(second).lora_id > stored.lora_id
    assert store.add_adapter(first) == stored
    assert [adapter.name for adapter in store.list_adapters()] == [second.name, first.name]


def test_a_name_stands_for_one_content(store: SqlStore, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter()
    store.add_adapter(adapter)
    with pytest.raises(ConflictError, match=adapter.name):
        store.add_adapter(replace(adapter, sha256="0" * 64))


def test_an_adapter_is_found_by_a_unique_prefix(store: SqlStore, make_adapter: MakeAdapter) -> None:
    one = replace(make_adapter(), name="opsd-aaaa000000000000")
    two = replace(make_adapter(), name="opsd-aaaa111111111111")
    store.add_adapter(one)
    store.add_adapter(two)
    assert store.get_adapter("aaaa0").name == one.name
    assert store.get_adapter("opsd-aaaa1").name == two.name
    with pytest.raises(InvalidInputError, match="several"):
        store.get_adapter("aaaa")
    for unknown in ("aaa", "bbbb", "aa%a", "", BASE):
        with pytest.raises(NotFoundError):
            store.get_adapter(unknown)
    with pytest.raises(NotFoundError, match="give 4 of its digits or more"):
        store.get_adapter("opsd-aaa")


def test_a_promotion_changes_row_states_run_and_audit_together(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    adapter = candidate()
    change = store.promote(adapter.name, expected_epoch=0, actor="ana", reason="good")
    assert change.incumbent == store.get_incumbent()
    assert change.incumbent.adapter == adapter.name
    assert (change.incumbent.previous, change.incumbent.epoch) == (BASE, 1)
    assert change.adapter == store.get_adapter(adapter.name)
    assert state_of(store, adapter) is AdapterState.INCUMBENT
    run = store.get_run(adapter.run_id)
    assert run.state is RunState.PROMOTED
    assert [line.state for line in run.history][-2:] == [RunState.CANARY, RunState.PROMOTED]
    entry = store.list_audit(limit=1).items[0]
    assert entry.id == change.audit_id
    assert (entry.actor, entry.action, entry.subject, entry.reason) == (
        "ana",
        "adapter.promote",
        adapter.name,
        "good",
    )
    detail = json.loads(entry.detail_json)
    facts = detail.pop("facts")
    assert detail == {"from": "base", "to": adapter.name, "epoch": 1}
    assert facts == {
        "adapter_sha256": adapter.sha256,
        "base_fingerprint": adapter.model_fingerprint,
        "run_id": adapter.run_id,
        "trigger": "operator",
        "incumbent": adapter.name,
        "epoch": 1,
    }


def test_the_incumbent_survives_a_restart(store_url: str, make_adapter: MakeAdapter) -> None:
    store = open_store(store_url)
    adapter = store.add_adapter(make_adapter())
    after = promote(store, adapter.name)
    store.close()
    store = open_store(store_url)
    assert store.get_incumbent() == after
    store.close()


def test_three_promotions_retire_the_oldest(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    first, second, third = candidate(), candidate(), candidate()
    for adapter in (first, second, third):
        promote(store, adapter.name)
    assert state_of(store, first) is AdapterState.RETIRED
    assert state_of(store, second) is AdapterState.PREVIOUS
    assert state_of(store, third) is AdapterState.INCUMBENT
    assert promote(store, first.name).previous == third.name
    assert state_of(store, second) is AdapterState.RETIRED


def test_rollback_swaps_and_forward_again(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    adapter = candidate()
    promote(store, adapter.name)
    back = rollback(store)
    assert (back.adapter, back.previous, back.epoch) == (BASE, adapter.name, 2)
    assert state_of(store, adapter) is AdapterState.PREVIOUS
    assert store.get_run(adapter.run_id).state is RunState.ROLLED_BACK
    forward = promote(store, adapter.name)
    assert (forward.adapter, forward.previous, forward.epoch) == (adapter.name, BASE, 3)
    assert store.get_run(adapter.run_id).state is RunState.ROLLED_BACK
    assert rollback(store).adapter == BASE


def test_rolled_back_twice_is_not_rolled_forward(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    first, second = candidate(), candidate()
    promote(store, first.name)
    promote(store, second.name)
    assert rollback(store).adapter == first.name
    before = store.get_incumbent()
    with pytest.raises(StateError, match=rf"ana rolled back from {second.name} \('bad'\).*approve"):
        rollback(store)
    assert store.get_incumbent() == before
    # A canary that comes and goes changes nothing of that.
    epoch = store.get_incumbent().epoch
    third = candidate()
    store.start_canary(third.name, share=0.1, expected_epoch=epoch, actor="ana", reason="try")
    with_canary = store.get_incumbent()
    store.rollback(expected_epoch=with_canary.epoch, actor="bo", reason="no canary")
    with pytest.raises(StateError, match=r"ana rolled back from .*'bad'"):
        rollback(store)


def test_nothing_to_roll_back_to(store: SqlStore) -> None:
    with pytest.raises(StateError, match="nothing served before"):
        rollback(store)


def test_a_canary_is_promoted_or_withdrawn(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    first, second = candidate(), candidate()
    change = store.start_canary(first.name, share=0.1, expected_epoch=0, actor="ana", reason="try")
    assert (change.incumbent.canary, change.incumbent.canary_share) == (first.name, 0.1)
    assert change.incumbent.adapter == BASE
    assert store.get_run(first.run_id).state is RunState.CANARY
    with pytest.raises(StateError, match="canary already"):
        store.start_canary(second.name, share=0.1, expected_epoch=1, actor="ana", reason="try")
    after = rollback(store)
    assert (after.adapter, after.canary, after.canary_share) == (BASE, "", 0.0)
    assert store.get_run(first.run_id).state is RunState.ROLLED_BACK
    assert state_of(store, first) is AdapterState.RETIRED
    store.start_canary(second.name, share=0.1, expected_epoch=2, actor="ana", reason="try")
    after = promote(store, second.name)
    assert (after.adapter, after.canary) == (second.name, "")
    assert store.get_run(second.run_id).state is RunState.PROMOTED


@pytest.mark.parametrize("share", [1.0, -0.1, float("nan")])
def test_a_canary_gets_a_share(
    store: SqlStore, candidate: Callable[[], Adapter], share: float
) -> None:
    with pytest.raises(InvalidInputError, match="share"):
        store.start_canary(
            candidate().name, share=share, expected_epoch=0, actor="ana", reason="try"
        )


def test_a_rejected_adapter_stays_out(store: SqlStore, candidate: Callable[[], Adapter]) -> None:
    adapter = candidate()
    change = store.reject(adapter.name, actor="ana", reason="worse")
    assert change.adapter == store.get_adapter(adapter.name)
    assert state_of(store, adapter) is AdapterState.REJECTED
    assert store.get_run(adapter.run_id).state is RunState.REJECTED
    assert store.get_incumbent().epoch == 0
    with pytest.raises(StateError, match="rejected"):
        promote(store, adapter.name)
    with pytest.raises(StateError):
        store.reject(adapter.name, actor="ana", reason="worse")


def test_a_rejection_and_the_report_that_says_why_are_one(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    adapter = candidate()
    report = GateReport(adapter.run_id, adapter.name, BASE, GateVerdict.FAIL, "no", (), 1.0, 2.0)
    store.set_adapter_state(adapter.name, AdapterState.RETIRED)
    with pytest.raises(StateError):
        store.reject(adapter.name, actor="gate", reason="worse", report=report)
    with pytest.raises(NotFoundError):
        store.get_gate(adapter.run_id)
    store.set_adapter_state(adapter.name, AdapterState.CANDIDATE)
    store.reject(adapter.name, actor="gate", reason="worse", report=report)
    assert store.get_gate(adapter.run_id) == report
    assert store.get_run(adapter.run_id).state is RunState.REJECTED


def test_ids_without_a_row_are_used_once(store: SqlStore, candidate: Callable[[], Adapter]) -> None:
    ids = [candidate().lora_id, store.allot_lora_id(), store.allot_lora_id(), candidate().lora_id]
    assert ids == sorted(set(ids))
    assert len(store.list_adapters()) == 2


def test_a_stale_epoch_changes_nothing(store: SqlStore, candidate: Callable[[], Adapter]) -> None:
    first, second = candidate(), candidate()
    before = promote(store, first.name)
    audit = store.list_audit(limit=1).total
    calls: tuple[Callable[[], object], ...] = (
        lambda: store.promote(second.name, expected_epoch=0, actor="bo", reason="me too"),
        lambda: store.rollback(expected_epoch=0, actor="bo", reason="me too"),
        lambda: store.start_canary(
            second.name, share=0.5, expected_epoch=0, actor="bo", reason="me too"
        ),
    )
    for call in calls:
        with pytest.raises(ConcurrentChangeError, match="ana"):
            call()
    assert store.get_incumbent() == before
    assert state_of(store, second) is AdapterState.CANDIDATE
    assert store.get_run(second.run_id).state is RunState.AWAITING_APPROVAL
    assert store.list_audit(limit=1).total == audit


def test_a_change_that_fails_late_changes_nothing(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    """An empty reason is found out last of all, after the states were written."""
    adapter = candidate()
    with pytest.raises(InvalidInputError, match="reason"):
        store.promote(adapter.name, expected_epoch=0, actor="ana", reason=" ")
    assert state_of(store, adapter) is AdapterState.CANDIDATE
    assert store.get_run(adapter.run_id).state is RunState.AWAITING_APPROVAL
    assert store.get_incumbent() == Incumbent()


def test_states_that_routing_depends_on_are_not_set_by_hand(
    store: SqlStore, candidate: Callable[[], Adapter]
) -> None:
    serving, other = candidate(), candidate()
    promote(store, serving.name)
    with pytest.raises(StateError):
        store.set_adapter_state(serving.name, AdapterState.RETIRED)
    with pytest.raises(StateError):
        store.set_adapter_state(other.name, AdapterState.INCUMBENT)
    store.set_adapter_state(other.name, AdapterState.RETIRED)
    assert state_of(store, other) is AdapterState.RETIRED
