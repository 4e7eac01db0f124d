"""Versions of suites, their budgets, and answers that are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from opsd.daemon.errors import ConflictError, NotFoundError
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.suites import (
    CachedAnswer,
    QueryUse,
    SuiteSettings,
    SuiteSource,
    SuiteState,
    SuiteVersion,
)

FRESH = 0.9


def keys(first: int, count: int = 10) -> list[str]:
    return [f"{number:064x}" for number in range(first, first + count)]


def a_suite(
    version: str = "1", *, name: str = "math", sealed: bool = True, budget: int = 2
) -> SuiteVersion:
    return SuiteVersion(
        settings=SuiteSettings(
            name, SuiteRole.TARGET, 0.02, 0.05, sealed, budget if sealed else 0, 3
        ),
        version=version,
        sha256=version.rjust(64, "0"),
        num_items=10,
        source=SuiteSource.ADDED,
        actor="ana",
        reason="because",
        path=f"/suites/{name}/{version}.jsonl",
        description="sums",
    )


def put(store: SqlStore, suite: SuiteVersion, prompt_keys: list[str]) -> SuiteVersion:
    return store.put_suite(suite, prompt_keys, fresh_share=FRESH)


def test_a_suite_comes_back_as_it_was(store: SqlStore) -> None:
    stored = put(store, a_suite(), keys(0))
    assert replace(stored, created_unix_s=0.0) == a_suite()
    assert store.get_suite("math") == store.get_suite("math", "1") == stored
    assert store.list_suites() == [stored]
    (entry,) = store.list_audit(limit=5).items
    assert (entry.action, entry.subject, entry.actor, entry.reason) == (
        *("suite.add", "math", "ana", "because"),
    )
    assert json.loads(entry.detail_json)["sha256"] == stored.sha256


def test_the_same_again_changes_nothing(store: SqlStore) -> None:
    stored = put(store, a_suite(), keys(0))
    assert put(store, a_suite(), keys(0)) == stored
    assert len(store.list_audit(limit=5).items) == 1
    louder = replace(a_suite(), settings=replace(a_suite().settings, budget=9))
    assert put(store, louder, keys(0)).settings.budget == 9
    assert len(store.list_audit(limit=5).items) == 2
    assert len(store.list_suites(retired=True)) == 1


def test_a_new_version_retires_the_one_before(store: SqlStore) -> None:
    put(store, a_suite("1"), keys(0))
    second = put(store, a_suite("2"), keys(100))
    assert store.list_suites() == [second]
    first = store.get_suite("math", "1")
    assert first.state is SuiteState.RETIRED
    assert first.retired_unix_s > first.created_unix_s
    assert [s.version for s in store.list_suites(retired=True)] == ["2", "1"]
    # Back to the first: what was used of it is not forgotten.
    store.use_suite("math", "1", "run")
    again = put(store, a_suite("1"), keys(0))
    assert (again.state, again.queries_used) == (SuiteState.ACTIVE, 1)
    assert store.get_suite("math").version == "1"


def test_a_version_is_never_other_content(store: SqlStore) -> None:
    put(store, a_suite(), keys(0))
    with pytest.raises(ConflictError, match="a version of their own"):
        put(store, replace(a_suite(), sha256="f" * 64), keys(5))
    with pytest.raises(ConflictError, match="added while the daemon ran"):
        put(store, replace(a_suite("2"), source=SuiteSource.CONFIG), keys(5))
    assert [s.version for s in store.list_suites(retired=True)] == ["1"]


def test_a_budget_is_spent_by_run(store: SqlStore) -> None:
    put(store, a_suite(budget=2), keys(0))
    assert store.use_suite("math", "1", "run-1") == QueryUse(True, 1, 2)
    assert store.use_suite("math", "1", "run-1") == QueryUse(True, 1, 2)
    assert store.use_suite("math", "1", "run-2") == QueryUse(True, 2, 2)
    assert store.use_suite("math", "1", "run-3") == QueryUse(False, 2, 2)
    assert store.use_suite("math", "1", "run-1").allowed
    assert store.get_suite("math").queries_used == 2
    with pytest.raises(NotFoundError):
        store.use_suite("math", "7", "run-1")


def test_a_suite_that_is_not_sealed_is_used_without_limit(store: SqlStore) -> None:
    put(store, a_suite(sealed=False), keys(0))
    for number in range(5):
        assert store.use_suite("math", "1", f"run-{number}").allowed
    assert store.get_suite("math").queries_used == 5


@pytest.mark.parametrize(
    ("num_stale", "name", "carried"), [(0, "math", 0), (1, "math", 0), (2, "math", 2), (2, "x", 2)]
)
def test_only_fresh_items_reset_the_budget(
    store: SqlStore, num_stale: int, name: str, carried: int
) -> None:
    put(store, a_suite("1"), keys(0))
    for run in ("run-1", "run-2"):
        store.use_suite("math", "1", run)
    # Not even under another name, after the first was removed.
    store.retire_suite("math", actor="ana", reason="r")
    second = put(store, a_suite("2", name=name), keys(10 - num_stale))
    assert second.fresh_share == pytest.approx(1 - num_stale / 10)
    assert second.queries_carried == second.queries_used == carried
    assert store.use_suite(name, "2", "run-3").allowed is (carried == 0)


def test_what_was_carried_is_carried_on(store: SqlStore) -> None:
    put(store, a_suite("1"), keys(0))
    store.use_suite("math", "1", "run-1")
    put(store, a_suite("2"), keys(5))
    third = put(store, a_suite("3"), keys(10))
    assert third.queries_carried == 1


def test_retiring(store: SqlStore) -> None:
    put(store, a_suite(), keys(0))
    retired = store.retire_suite("math", actor="ben", reason="old")
    assert retired.state is SuiteState.RETIRED
    assert store.list_suites() == []
    assert store.list_audit(limit=1).items[0].action == "suite.remove"
    with pytest.raises(NotFoundError, match="opsd suites list"):
        store.retire_suite("math", actor="ben", reason="old")
    with pytest.raises(NotFoundError, match="--all"):
        store.get_suite("none")


RECORD = AnswerRecord(True, 7, entropy=0.5)
CONDITIONS = "c" * 64


def key(item: str, *, adapter: str = "a", sample: int = 0) -> CachedAnswer:
    return CachedAnswer(adapter, CONDITIONS, item, sample)


def test_answers_come_back_by_adapter_and_conditions(store: SqlStore) -> None:
    store.save_answer(key("1"), RECORD, run_id="r")
    store.save_answer(key("1", sample=1), AnswerRecord(False, 3), run_id="r")
    store.save_answer(key("1"), replace(RECORD, tokens=8), run_id="r")
    store.save_answer(key("1", adapter="b"), RECORD, run_id="r")
    assert store.recall_answers("a", CONDITIONS, run_id="other") == {
        ("1", 0): replace(RECORD, tokens=8),
        ("1", 1): AnswerRecord(False, 3),
    }
    assert store.recall_answers("a", "d" * 64, run_id="r") == {}


def test_an_answer_without_outcome_is_its_runs_alone(store: SqlStore) -> None:
    store.save_answer(key("1"), AnswerRecord(None, 0), run_id="r")
    assert store.recall_answers("a", CONDITIONS, run_id="r") == {("1", 0): AnswerRecord(None, 0)}
    assert store.recall_answers("a", CONDITIONS, run_id="s") == {}


def test_outcomes_of_the_last_used_come_first(store: SqlStore) -> None:
    for adapter, solved in (("a", True), ("b", False)):
        store.save_answer(key("1", adapter=adapter), AnswerRecord(solved, 1), run_id="r")
        store.save_answer(
            key("1", adapter=adapter, sample=1), AnswerRecord(not solved, 1), run_id="r"
        )
        store.save_answer(key("2", adapter=adapter), AnswerRecord(None, 1), run_id="r")
    assert store.answer_outcomes(CONDITIONS) == [{"1": False}, {"1": True}]
    store.recall_answers("a", CONDITIONS, run_id="r")
    assert store.answer_outcomes(CONDITIONS) == [{"1": True}, {"1": False}]


def test_answers_unused_for_longest_go_first(store: SqlStore) -> None:
    for number in range(6):
        store.save_answer(key("1", adapter=str(number)), RECORD, run_id="r")
    store.recall_answers("0", CONDITIONS, run_id="r")
    assert store.trim_answers(max_rows=100, max_age_s=1e6) == 0
    assert store.trim_answers(max_rows=3, max_age_s=1e6) == 3
    left = {a for a in "012345" if store.recall_answers(a, CONDITIONS, run_id="r")}
    assert left == {"0", "4", "5"}
    assert store.trim_answers(max_rows=100, max_age_s=2.5) == 1
