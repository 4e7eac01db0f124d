"""What SQLite's planner makes of the queries that must not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pair_sets import DrawPolicy, NewPair, PairFilter
from opsd.daemon.types.pairs import Origin, Pair, PairStatus


@pytest.fixture
def store(tmp_path: Path, make_pair: Callable[..., Pair]) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    opened.add_pairs([NewPair(make_pair(source="web")) for _ in range(60)])
    yield opened
    opened.close()


def plans(store: SqlStore, work: Callable[[], object]) -> dict[str, str]:
    """How each query of ``work`` that reads pairs is carried out."""
    engine = store._database._reader_engine
    seen: dict[str, Any] = {}

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if " pairs" in statement and not statement.startswith("EXPLAIN"):
            seen[statement] = parameters

    event.listen(engine, "before_cursor_execute", note)
    work()
    event.remove(engine, "before_cursor_execute", note)
    found = {}
    with engine.connect() as connection:
        for statement, parameters in seen.items():
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            found[statement] = "\n".join(row[-1] for row in rows)
    return found


def test_a_draw_walks_indexes(store: SqlStore) -> None:
    found = plans(
        store,
        lambda: store.draw_pairs("run", DrawPolicy(30), held_out=lambda keys: set()),
    )
    assert not [plan for plan in found.values() if "SCAN pairs" in plan]
    (newest,) = [plan for query, plan in found.items() if "max(" in query]
    assert "ix_pairs_prompt_key" in newest
    (walk,) = [plan for query, plan in found.items() if "pairs.sample_key >=" in query]
    assert "COVERING INDEX ix_pairs_draw (group_id=? AND status=? AND sample_key>?)" in walk
    assert "B-TREE" not in walk


@pytest.mark.parametrize("token", ["", "40"])
@pytest.mark.parametrize("status", [None, PairStatus.VERIFIED])
def test_a_rare_kind_is_listed_from_its_groups(
    store: SqlStore, token: str, status: PairStatus | None
) -> None:
    found = plans(
        store,
        lambda: store.list_pairs(
            limit=5, token=token, status=status, submitter="ana", origin=Origin.SUBMITTED
        ),
    )
    (plan,) = found.values()
    assert "COVERING INDEX ix_pairs_draw" in plan


def test_pages_and_counts_sort_nothing(store: SqlStore) -> None:
    for work in (
        lambda: store.list_pairs(limit=5),
        lambda: store.list_pairs(limit=5, token="30"),
        lambda: store.list_pairs(limit=5, status=PairStatus.QUARANTINED),
        lambda: store.filtered_pairs(PairFilter(submitter="ana"), after_seq=9, limit=5),
    ):
        assert not [plan for plan in plans(store, work).values() if "B-TREE" in plan]
    assert plans(store, store.count_pairs) == {}
    assert plans(store, store.pair_groups) == {}


def test_pairs_without_bands_are_found_without_looking_at_the_others(store: SqlStore) -> None:
    (plan,) = plans(store, lambda: store.pairs_without_bands(5)).values()
    assert "ix_pairs_without_bands" in plan
