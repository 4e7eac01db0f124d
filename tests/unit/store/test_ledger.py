"""Uses of held-out items, and the inputs of decisions."""

from typing import Any

import pytest

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.gate import SuiteRole, SuiteUse


def use(name: str, *keys: str) -> SuiteUse:
    return SuiteUse(name, "a" * 64, SuiteRole.TARGET, keys)


def test_each_gate_on_the_same_items_counts_one_more(store: SqlStore) -> None:
    suites = [use("one", "k1", "k2"), use("two", "k3")]
    for number in range(3):
        found = store.claim_suite_uses(f"run-{number}", suites, alpha=0.05)
        assert found == {"one": number, "two": number}
    assert store.num_suite_uses(["k1"]) == 3
    assert store.num_suite_uses(["never"]) == 0


def test_an_evaluation_begun_again_does_not_pay_twice(store: SqlStore) -> None:
    suites = [use("one", "k1")]
    assert store.claim_suite_uses("run", suites, alpha=0.05) == {"one": 0}
    assert store.claim_suite_uses("run", suites, alpha=0.05) == {"one": 0}
    assert store.claim_suite_uses("other", suites, alpha=0.05) == {"one": 1}
    assert store.num_suite_uses(["k1"]) == 2


def test_a_new_version_with_an_old_item_goes_on_counting(store: SqlStore) -> None:
    store.claim_suite_uses("run-1", [use("v1", "k1", "k2")], alpha=0.05)
    assert store.claim_suite_uses("run-2", [use("v2", "k2", "fresh")], alpha=0.05) == {"v2": 1}
    assert store.claim_suite_uses("run-3", [use("v3", "fresher")], alpha=0.05) == {"v3": 0}


def test_the_ledger_lists_what_was_used(store: SqlStore) -> None:
    store.claim_suite_uses("run-1", [use("one", "k1")], alpha=0.05)
    store.claim_suite_uses("run-2", [use("one", "k1")], alpha=0.01)
    lines = store.list_suite_uses()
    assert [(line.run_id, line.gate_number, line.alpha) for line in lines] == [
        ("run-1", 1, 0.05),
        ("run-2", 2, 0.01),
    ]
    assert lines[0].role is SuiteRole.TARGET


def test_inputs_are_kept_under_their_digest(store: SqlStore) -> None:
    data = b'{"x":1}' * 1000
    sha256 = store.save_gate_inputs("run", data)
    assert store.save_gate_inputs("run", data) == sha256
    assert store.get_gate_inputs(sha256) == data
    with pytest.raises(NotFoundError, match="no gate inputs"):
        store.get_gate_inputs("f" * 64)


def test_many_items_are_counted(store: SqlStore) -> None:
    keys: Any = [f"k{number}" for number in range(3000)]
    store.claim_suite_uses("run", [use("big", *keys)], alpha=0.05)
    assert store.num_suite_uses(keys) == 1
