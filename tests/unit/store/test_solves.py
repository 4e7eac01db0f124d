"""How often the student solved each problem, over all runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.pairs import Pair
from opsd.daemon.types.runs import Run

MakeRun = Callable[..., Run]
MakePair = Callable[..., Pair]


def test_counts_add_up_over_runs_and_stand_once_for_each(
    store: SqlStore, make_run: MakeRun, make_pair: MakePair
) -> None:
    ids = [make_pair().input.id for _ in range(3)]
    pairs = [make_pair(id=pair_id) for pair_id in ids]
    for pair in pairs:
        store.add_pair(pair)
    first, second = store.create_run(make_run()), store.create_run(make_run())
    assert store.solve_counts(ids) == {}
    store.record_solves(first.id, {ids[0]: (9, 9)})
    store.record_solves(first.id, {ids[0]: (4, 1), ids[1]: (2, 2)})
    store.record_solves(second.id, {ids[0]: (3, 3)})
    assert store.solve_counts(ids) == {ids[0]: (7, 4), ids[1]: (2, 2)}
    assert store.solve_counts([ids[2]]) == {}
    assert store.solve_counts([]) == {}


def test_what_is_not_stored_cannot_be_counted(
    store: SqlStore, make_run: MakeRun, make_pair: MakePair
) -> None:
    pair = make_pair()
    store.add_pair(pair)
    run = store.create_run(make_run())
    with pytest.raises(NotFoundError, match=r"1 pairs that are not stored, e\.g\. nobody"):
        store.record_solves(run.id, {pair.input.id: (1, 1), "nobody": (1, 1)})
    assert store.solve_counts([pair.input.id]) == {}
    with pytest.raises(NotFoundError):
        store.record_solves("0" * 36, {})


def test_more_pairs_than_one_query_takes(
    store: SqlStore, make_run: MakeRun, make_pair: MakePair
) -> None:
    pairs = [make_pair() for _ in range(1203)]
    for pair in pairs:
        store.add_pair(pair)
    run = store.create_run(make_run())
    counts = {pair.input.id: (2, 1) for pair in pairs}
    store.record_solves(run.id, counts)
    assert store.solve_counts(list(counts)) == counts
