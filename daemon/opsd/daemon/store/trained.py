"""Which runs, and which adapters, some pairs went into."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, select

from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks
from opsd.daemon.store.pair_counts import group_where
from opsd.daemon.types.pair_sets import PairFilter, TrainedRun

_pairs = tables.pairs
_held = tables.snapshot_pairs


class TrainedArea(Area):
    """The part of ``PairChangeStore`` about what was trained."""

    def trained_runs(self, wanted: PairFilter) -> list[TrainedRun]:
        """The runs whose snapshots hold pairs that match, oldest first, with their adapters.

        So are those that went on from such an adapter, or had it for a teacher. The filter's status
        is left out of account, so it may be asked before or after a purge.
        """

        def work(connection: Connection) -> list[TrainedRun]:
            counts: dict[str, int] = {}
            for conditions in _by_parts(wanted):
                query = (
                    select(_held.c.run_id)
                    .join(_pairs, _pairs.c.id == _held.c.pair_id)
                    .where(*conditions)
                )
                for run_id in connection.execute(query).scalars():
                    counts[run_id] = counts.get(run_id, 0) + 1
            return _with_adapters(connection, counts)

        return self._database.read(work)


def _by_parts(wanted: PairFilter) -> Iterable[list[ColumnElement[bool]]]:
    """Conditions that together cover the filter, whatever the pairs' status is by now."""
    rest: list[Any] = []
    if wanted.source or wanted.submitter or wanted.origin:
        groups = select(tables.pair_groups.c.id).where(*group_where(wanted))
        rest.append(_pairs.c.group_id.in_(groups))
    if not wanted.ids:
        yield rest
    for some in chunks(dict.fromkeys(wanted.ids)):
        yield [*rest, _pairs.c.id.in_(some)]


def _with_adapters(connection: Connection, counts: dict[str, int]) -> list[TrainedRun]:
    """And the runs that went on from, or were taught by, one of their adapters."""
    runs, adapters = tables.runs, tables.adapters
    found: dict[str, TrainedRun] = {}
    ancestor: dict[str, str] = dict.fromkeys(counts, "")
    while ancestor:
        names: dict[str, list[str]] = {}
        for some in chunks(ancestor):
            made = select(adapters.c.run_id, adapters.c.name).where(adapters.c.run_id.in_(some))
            for run_id, name in connection.execute(made.order_by(adapters.c.lora_id)):
                names.setdefault(run_id, []).append(name)
            query = select(runs.c.id, runs.c.state, runs.c.spec_json).where(runs.c.id.in_(some))
            for run_id, state, spec_json in connection.execute(query.order_by(runs.c.seq)):
                found[run_id] = TrainedRun(
                    run_id=run_id,
                    state=state,
                    num_pairs=counts.get(run_id, 0),
                    shard_path=_spec(spec_json).get("shard", {}).get("path", ""),
                    adapters=tuple(names.get(run_id, ())),
                    through=ancestor[run_id],
                )
        ancestor = _heirs(connection, [name for some in names.values() for name in some], found)
    return list(found.values())


def _heirs(
    connection: Connection, adapters: Sequence[str], besides: Collection[str]
) -> dict[str, str]:
    """Run → the one of the adapters whose weights it started from or learned from."""
    runs = tables.runs
    heirs: dict[str, str] = {}
    for some in chunks(adapters):
        query = select(runs.c.id, runs.c.incumbent_at_start, runs.c.spec_json).where(
            runs.c.incumbent_at_start.in_(some)
        )
        for run_id, name, spec_json in connection.execute(query.order_by(runs.c.seq)):
            spec = _spec(spec_json)
            uses_it = spec.get("initial_adapter_path") or (
                spec.get("objective", {}).get("teacher") == "TEACHER_INCUMBENT"
            )
            if uses_it and run_id not in besides:
                heirs[run_id] = name
    return heirs


def _spec(spec_json: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(spec_json) if spec_json else {}
    return found
