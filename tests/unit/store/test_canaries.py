"""A canary's step, statistics and end follow the incumbent's row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import text

from opsd.daemon.errors import ConcurrentChangeError, NotFoundError, StateError
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.canary import CanaryEnd
from opsd.daemon.types.pairs import Attempt

WHY: dict[str, Any] = {"actor": "ana", "reason": "try"}


@pytest.fixture
def canary(store: SqlStore, make_adapter: Callable[[], Adapter]) -> str:
    name = store.add_adapter(make_adapter()).name
    store.start_canary(name, share=0.05, expected_epoch=0, plan_json='{"a": 1}', **WHY)
    return name


def test_a_step_changes_share_and_row_together(store: SqlStore, canary: str) -> None:
    began = store.get_canary(canary)
    change = store.advance_canary(
        canary, step=1, share=0.25, expected_epoch=1, detail={"e_value": 3.5}, **WHY
    )
    assert (change.incumbent.canary_share, change.incumbent.epoch) == (0.25, 2)
    after = store.get_canary(canary)
    assert (after.step, after.id, after.salt) == (1, began.id, began.salt)
    assert after.step_started_unix_s > began.step_started_unix_s
    entry = store.list_audit(limit=1).items[0]
    assert entry.action == "adapter.canary_advance"
    assert '"e_value":3.5' in entry.detail_json
    with pytest.raises(ConcurrentChangeError):
        store.advance_canary(canary, step=2, share=0.5, expected_epoch=1, **WHY)
    with pytest.raises(StateError, match="not the canary"):
        store.advance_canary("opsd-other", step=2, share=0.5, expected_epoch=2, **WHY)
    assert store.get_canary(canary).step == 1


def test_statistics_and_callers_are_kept_until_the_end(store: SqlStore, canary: str) -> None:
    row = store.get_canary(canary)
    store.save_canary(row.id, '{"n": 1}', {"reply": {"aa", "bb"}})
    store.save_canary(row.id, '{"n": 2}', {"reply": {"bb", "cc"}, "outcome": {"aa"}})
    assert store.get_canary(canary).statistics_json == '{"n": 2}'
    assert store.canary_callers(row.id) == {"reply": {"aa", "bb", "cc"}, "outcome": {"aa"}}
    store.rollback(expected_epoch=1, **WHY)
    store.save_canary(row.id, '{"n": 3}', {"reply": {"dd"}})
    ended = store.get_canary(canary)
    assert (ended.end, ended.statistics_json, ended.reason) == (
        CanaryEnd.WITHDRAWN,
        '{"n": 2}',
        "try",
    )
    assert "dd" not in store.canary_callers(row.id)["reply"]


def test_promotion_ends_it_and_another_one_draws_others(
    store: SqlStore, canary: str, make_adapter: Callable[[], Adapter]
) -> None:
    first = store.get_canary(canary)
    store.promote(canary, expected_epoch=1, **WHY)
    assert store.get_canary(canary).end is CanaryEnd.PROMOTED
    other = store.add_adapter(make_adapter()).name
    store.start_canary(other, share=0.0, expected_epoch=2, **WHY)
    assert store.get_canary(other).salt != first.salt
    assert [row.adapter for row in store.list_canaries(limit=5)] == [other, canary]
    with pytest.raises(NotFoundError):
        store.get_canary("opsd-none")


def test_an_attempt_keeps_how_its_adapter_was_drawn(store: SqlStore) -> None:
    drawn = Attempt("a", "r", "base", "p", "c", 1, 1.0, canary_share=0.05, caller="ab" * 16)
    store.add_attempts([drawn, Attempt("b", "r", "base", "p", "c", 1, 1.0)])
    assert store.get_attempt("a") == drawn
    assert store.get_attempt("b").canary_share is None


def test_a_canary_of_a_version_without_steps_goes_on(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ScriptDirectory._upgrade_revs
    with monkeypatch.context() as first:
        first.setattr(
            ScriptDirectory, "_upgrade_revs", lambda self, _, now: steps(self, "0003", now)
        )
        store = open_store(store_url)
    begun = text("UPDATE incumbent SET canary = 'opsd-x', canary_share = 0.1, changed_unix_s = 7")
    store._database.write(lambda connection: connection.execute(begun))
    store.close()

    store = open_store(store_url)
    canary = store.get_canary("opsd-x")
    assert (canary.end, canary.plan_json, canary.started_unix_s) == (CanaryEnd.RUNNING, "{}", 7.0)
    store.close()
