"""Runs, their history, the pool's lease, gate reports."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from opsd.daemon.errors import (
    ConcurrentChangeError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    OpsdError,
    StateError,
)
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)
from opsd.daemon.types.runs import CurvePoint, Run, RunState

MakeRun = Callable[..., Run]


def test_a_run_comes_back_with_its_history(store: SqlStore, make_run: MakeRun) -> None:
    run = make_run()
    stored = store.create_run(run)
    assert [line.state for line in stored.history] == [RunState.QUEUED]
    assert replace(stored, history=()) == run
    assert store.get_run(run.id[:8]) == stored
    assert store.list_runs(limit=5).items == (run,)
    assert store.list_audit(limit=1).items[0].action == "run.create"


def test_a_request_triggers_one_run(store: SqlStore, make_run: MakeRun) -> None:
    first = store.create_run(make_run("request"))
    assert store.create_run(make_run("request")) == first
    store.create_run(make_run())
    store.create_run(make_run())
    assert store.list_runs(limit=1).total == 3
    with pytest.raises(ConflictError):
        store.create_run(replace(first, request_id="other", history=()))


def test_a_transition_is_compare_and_set(store: SqlStore, make_run: MakeRun) -> None:
    run = store.create_run(make_run())
    moved = store.transition_run(
        run.id, expected=RunState.QUEUED, to=RunState.PREPARING, reason="go", num_pairs=7
    )
    assert (moved.state, moved.num_pairs, moved.reason) == (RunState.PREPARING, 7, "go")
    assert [line.state for line in moved.history] == [RunState.QUEUED, RunState.PREPARING]
    with pytest.raises(ConcurrentChangeError, match="preparing"):
        store.transition_run(
            run.id, expected=RunState.QUEUED, to=RunState.FAILED, reason="late", error="x"
        )
    assert store.get_run(run.id) == moved
    with pytest.raises(NotFoundError):
        store.transition_run("no", expected=RunState.QUEUED, to=RunState.FAILED, reason="")


def test_of_many_movers_one_wins(store: SqlStore, make_run: MakeRun) -> None:
    run = store.create_run(make_run())

    def move(_number: int) -> bool:
        try:
            store.transition_run(
                run.id, expected=RunState.QUEUED, to=RunState.PREPARING, reason="me"
            )
        except ConcurrentChangeError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(move, range(8))) == 1
    assert len(store.get_run(run.id).history) == 2


def test_fields_are_set_and_garbage_is_kept(store: SqlStore, make_run: MakeRun) -> None:
    run = store.create_run(make_run())
    changed = store.update_run(run.id, step=3, log_tail="a\0b\udcff", generated_tokens=1 << 40)
    assert (changed.step, changed.generated_tokens) == (3, 1 << 40)
    assert changed.log_tail == "a\ufffdb\ufffd"
    assert changed.updated_unix_s > run.updated_unix_s
    with pytest.raises(AssertionError, match="state"):
        store.update_run(run.id, state=RunState.FAILED)
    with pytest.raises(NotFoundError):
        store.update_run("no", step=1)


def test_what_a_comparison_asks_for_comes_back(store: SqlStore, make_run: MakeRun) -> None:
    first = store.create_run(make_run())
    run = replace(make_run(), same_data_as=first.id, measure_only=True)
    assert replace(store.create_run(run), history=()) == run
    checked = store.update_run(run.id, teacher_check_json='{"passed": true}')
    assert (checked.measure_only, checked.teacher_check_json) == (True, '{"passed": true}')


def test_a_curve_grows_in_any_order_and_each_point_is_there_once(
    store: SqlStore, make_run: MakeRun
) -> None:
    run, other = store.create_run(make_run()), store.create_run(make_run())
    points = [
        CurvePoint(step, 1 << 40, 1.5 * step, suite, 200, 0.25, 31.5)
        for step in (10, 0, 20)
        for suite in ("word", "symbols")
    ]
    for start in (0, 2, 4):
        changed = store.add_curve_points(run.id, points[start : start + 2])
    assert changed.updated_unix_s > run.updated_unix_s
    assert changed == store.get_run(run.id)
    assert changed.curve == tuple(sorted(points, key=lambda point: (point.step, point.suite)))
    better = replace(points[0], accuracy=0.75)
    assert better in store.add_curve_points(run.id, [better]).curve
    assert len(store.get_run(run.id).curve) == 6
    assert store.get_run(other.id).curve == ()
    assert store.list_runs(limit=2).items[1].curve == ()
    with pytest.raises(NotFoundError):
        store.add_curve_points("no", [better])


def test_open_runs_are_those_not_over(store: SqlStore, make_run: MakeRun) -> None:
    first, second = store.create_run(make_run()), store.create_run(make_run())
    store.transition_run(first.id, expected=RunState.QUEUED, to=RunState.FAILED, reason="x")
    assert [run.id for run in store.open_runs()] == [second.id]


def test_cancelling_is_asked_once(store: SqlStore, make_run: MakeRun) -> None:
    run = store.create_run(make_run())
    assert store.request_cancel(run.id, actor="ana", reason="stop").cancel_actor == "ana"
    assert store.request_cancel(run.id, actor="bo", reason="too").cancel_reason == "stop"
    assert store.list_audit(limit=9).total == 2
    store.transition_run(run.id, expected=RunState.QUEUED, to=RunState.CANCELLED, reason="x")
    with pytest.raises(StateError, match="over"):
        store.request_cancel(run.id, actor="ana", reason="again")
    with pytest.raises(InvalidInputError):
        store.request_cancel(run.id, actor="ana", reason=" ")


def test_prefixes_must_be_unique(store: SqlStore, make_run: MakeRun) -> None:
    store.create_run(replace(make_run(), id="aaaa1111-0000-0000-0000-000000000000"))
    store.create_run(replace(make_run(), id="aaaa2222-0000-0000-0000-000000000000"))
    assert store.get_run("aaaa1").id.startswith("aaaa1")
    with pytest.raises(InvalidInputError, match="several"):
        store.get_run("aaaa")
    for unknown in ("aaa", "____", "zzzz"):
        with pytest.raises(NotFoundError):
            store.get_run(unknown)


def test_the_pool_has_one_holder(store: SqlStore) -> None:
    assert store.pool_lease() is None
    lease = store.acquire_pool("one", ttl_s=5)
    assert lease is not None
    assert store.pool_lease() == lease
    assert store.acquire_pool("two", ttl_s=5) is None
    renewed = store.acquire_pool("one", ttl_s=5)
    assert renewed is not None
    assert renewed.acquired_unix_s == lease.acquired_unix_s
    assert renewed.expires_unix_s > lease.expires_unix_s
    store.release_pool("two")
    assert store.pool_lease() == renewed
    store.release_pool("one")
    assert store.acquire_pool("two", ttl_s=1) is not None


def test_an_expired_lease_is_taken_over(store: SqlStore) -> None:
    store.acquire_pool("one", ttl_s=0.5)  # the clock ticks 1 s a look
    taken = store.acquire_pool("two", ttl_s=5)
    assert taken is not None
    assert taken.holder == "two"


@pytest.fixture
def report() -> GateReport:
    suite = SuiteReport(
        name="hard",
        role=SuiteRole.TARGET,
        n=10,
        incumbent_accuracy=0.1,
        candidate_accuracy=0.9,
        only_incumbent=0,
        only_candidate=8,
        difference=0.8,
        ci_low=0.5,
        ci_high=1.0,
        confidence=0.95,
        p_value=0.0078125,
        margin=0.02,
        verdict=GateVerdict.PASS,
        explanation="better",
        incumbent_tokens_mean=4.0,
        candidate_tokens_mean=5.0,
        strata=(StratumReport("easy", 10, 0.1, 0.9),),
        num_errors=0,
        suite_sha256="ab",
    )
    return GateReport("run-1", "opsd-aaaa", "base", GateVerdict.PASS, "ok", (suite,), 1.0, 2.0)


def test_gate_reports_come_back(store: SqlStore, report: GateReport) -> None:
    store.save_gate(report)
    store.save_gate(report)
    for key in ("run-1", "opsd-aaaa", "run-", "aaaa"):
        assert store.get_gate(key) == report
    newer = replace(report, verdict=GateVerdict.FAIL)
    store.save_gate(newer)
    assert store.get_gate("run-1") == newer
    store.save_gate(replace(report, run_id="run-2", candidate="opsd-bbbb"))
    with pytest.raises(InvalidInputError, match="several"):
        store.get_gate("run-")
    with pytest.raises(NotFoundError):
        store.get_gate("run%")


def test_audit_entries_page_backwards(store: SqlStore) -> None:
    ids = [store.add_audit(actor="a", action="x", subject=str(n), reason="r") for n in range(5)]
    first = store.list_audit(limit=3)
    second = store.list_audit(limit=3, token=first.next_token)
    assert [entry.id for entry in first.items + second.items] == ids[::-1]
    assert (second.next_token, second.total) == ("", 5)
    assert issubclass(InvalidInputError, OpsdError)
