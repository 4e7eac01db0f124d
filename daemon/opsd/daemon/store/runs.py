"""Runs, their history and snapshots, and the pool's lease.

Which transitions are legal is the state machine's business; the store only makes them
compare-and-set.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from dataclasses import fields as dataclass_fields
from enum import Enum
from typing import Any

from sqlalchemy import Connection, RowMapping, Update, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from opsd.daemon.errors import (
    ConcurrentChangeError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, by_prefix, chunks, one, page, write_audit
from opsd.daemon.store.pair_counts import lock_pairs, recount_new
from opsd.daemon.types.runs import CurvePoint, PoolLease, Run, RunState, Transition, TriggerKind

_runs = tables.runs
_lease = tables.pool_lease

OPEN_STATES = (
    RunState.QUEUED,
    RunState.PREPARING,
    RunState.TRAINING,
    RunState.EVALUATING,
    RunState.AWAITING_APPROVAL,
    RunState.CANARY,
)
_ROWS_OF_THEIR_OWN = frozenset({"history", "curve"})
_COLUMNS = tuple(
    field.name for field in dataclass_fields(Run) if field.name not in _ROWS_OF_THEIR_OWN
)
_SETTABLE = frozenset(_COLUMNS) - {"id", "state", "created_unix_s"}


class RunArea(Area):
    """Implements ``RunStore``."""

    def create_run(self, run: Run) -> Run:
        if run.state is not RunState.QUEUED:
            raise InvalidInputError(f"a new run is queued, not {run.state}")

        def work(connection: Connection) -> Run:
            older = _by_request(connection, run)
            if older is not None:
                return older
            try:
                with connection.begin_nested():
                    connection.execute(insert(_runs).values(**_values(run)))
            except IntegrityError as error:
                older = _by_request(connection, run)
                if older is not None:
                    return older
                raise ConflictError(f"a run {run.id!r} exists already") from error
            add_history(connection, run.id, run.state, run.created_unix_s, run.reason)
            write_audit(
                connection,
                self._clock(),
                actor=run.actor,
                action="run.create",
                subject=run.id,
                reason=run.reason,
                detail_json=json.dumps(
                    {"overrides": json.loads(run.overrides_json), "source": run.source}
                ),
            )
            return load_run(connection, run.id)

        return self._database.write(work)

    def get_run(self, run_id: str) -> Run:
        def work(connection: Connection) -> Run:
            row = by_prefix(connection, _runs, _runs.c.id, run_id, "run")
            return load_run(connection, row["id"])

        return self._database.read(work)

    def list_runs(self, *, limit: int, token: str = "") -> Page[Run]:
        return self._database.read(
            lambda connection: page(connection, _runs, "seq", _run, limit=limit, token=token)
        )

    def open_runs(self) -> list[Run]:
        states = [state.value for state in OPEN_STATES]
        query = select(_runs).where(_runs.c.state.in_(states)).order_by(_runs.c.seq)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_run(row) for row in rows]

    def update_run(self, run_id: str, **fields: object) -> Run:
        values = self._stamped(fields)

        def work(connection: Connection) -> Run:
            changed = connection.execute(
                update(_runs).where(_runs.c.id == run_id).values(**values)
            ).rowcount
            if not changed:
                raise NotFoundError(f"no run {run_id[:80]!r}")
            return load_run(connection, run_id)

        return self._database.write(work)

    def transition_run(
        self, run_id: str, *, expected: RunState, to: RunState, reason: str, **fields: object
    ) -> Run:
        values = self._stamped(fields)

        def work(connection: Connection) -> Run:
            move_run(
                connection, run_id, expected, to, reason, values["updated_unix_s"], values=values
            )
            if to is RunState.TRAINING:  # from here on it is settled on which data
                write_audit(
                    connection,
                    values["updated_unix_s"],
                    actor="opsd",
                    action="run.train",
                    subject=run_id,
                    reason=reason,
                )
            return load_run(connection, run_id)

        return self._database.write(work)

    def request_cancel(self, run_id: str, *, actor: str, reason: str) -> Run:
        """Asked twice, the first one's name and reason stay."""
        if not reason.strip():
            raise InvalidInputError("cancelling a run takes a reason")

        def work(connection: Connection) -> Run:
            row = by_prefix(connection, _runs, _runs.c.id, run_id, "run")
            run = load_run(connection, row["id"], for_update=True)
            if run.state not in OPEN_STATES:
                raise StateError(f"run {run.id} is over ({run.state}): there is nothing to cancel")
            if run.cancel_reason:
                return run
            now = self._clock()
            connection.execute(
                update(_runs)
                .where(_runs.c.id == run.id)
                .values(cancel_reason=reason, cancel_actor=actor, updated_unix_s=now)
            )
            write_audit(
                connection, now, actor=actor, action="run.cancel", subject=run.id, reason=reason
            )
            return load_run(connection, run.id)

        return self._database.write(work)

    def add_curve_points(self, run_id: str, points: Sequence[CurvePoint]) -> Run:
        """Of the same step and suite, the later one stands."""
        table = tables.curve_points

        def work(connection: Connection) -> Run:
            load_run(connection, run_id, for_update=True)
            for point in points:
                connection.execute(
                    delete(table).where(
                        table.c.run_id == run_id,
                        table.c.step == point.step,
                        table.c.suite == point.suite,
                    )
                )
                connection.execute(insert(table).values(run_id=run_id, **asdict(point)))
            connection.execute(
                update(_runs).where(_runs.c.id == run_id).values(updated_unix_s=self._clock())
            )
            return load_run(connection, run_id)

        return self._database.write(work)

    def record_snapshot(self, run_id: str, pair_ids: Sequence[str], *, last_seq: int = 0) -> None:
        """Recorded again (a run prepared twice), the later one stands."""
        snapshots, held, pairs = tables.snapshots, tables.snapshot_pairs, tables.pairs

        def work(connection: Connection) -> None:
            load_run(connection, run_id, for_update=True)
            ids = set(pair_ids)
            lock_pairs(connection)
            known = 0
            newest_seq = last_seq
            for some in chunks(ids):
                number, seq = connection.execute(
                    select(func.count(), func.max(pairs.c.seq)).where(pairs.c.id.in_(some))
                ).one()
                known += number
                newest_seq = max(newest_seq, seq or 0)
            if known != len(ids):
                raise NotFoundError(
                    f"the snapshot of run {run_id} names {len(ids) - known} pairs "
                    "that are not stored"
                )
            connection.execute(delete(held).where(held.c.run_id == run_id))
            connection.execute(delete(snapshots).where(snapshots.c.run_id == run_id))
            connection.execute(
                insert(snapshots).values(
                    run_id=run_id, last_pair_seq=newest_seq, created_unix_s=self._clock()
                )
            )
            for some in chunks(ids):
                connection.execute(
                    insert(held), [{"run_id": run_id, "pair_id": pair_id} for pair_id in some]
                )
            recount_new(connection)

        self._database.write(work)

    def acquire_pool(self, holder: str, *, ttl_s: float) -> PoolLease | None:
        if not holder:
            raise InvalidInputError("the pool's lease needs a holder")

        def work(connection: Connection) -> PoolLease | None:
            now = self._clock()
            lease = _current_lease(connection, for_update=True)
            if lease is not None and lease.holder != holder and lease.expires_unix_s > now:
                return None
            renews = lease is not None and lease.holder == holder
            acquired = lease.acquired_unix_s if renews and lease is not None else now
            renewed = PoolLease(holder, acquired, now + ttl_s)
            connection.execute(
                update(_lease).values(
                    holder=holder,
                    acquired_unix_s=renewed.acquired_unix_s,
                    expires_unix_s=renewed.expires_unix_s,
                )
            )
            return renewed

        return self._database.write(work)

    def release_pool(self, holder: str) -> None:
        """Somebody else's lease is left alone."""

        def work(connection: Connection) -> None:
            connection.execute(
                update(_lease)
                .where(_lease.c.holder == holder)
                .values(holder="", acquired_unix_s=0.0, expires_unix_s=0.0)
            )

        self._database.write(work)

    def pool_lease(self) -> PoolLease | None:
        """The lease as it stands, expired or not; None when free."""
        return self._database.read(_current_lease)

    def _stamped(self, fields: dict[str, object]) -> dict[str, Any]:
        unknown = fields.keys() - _SETTABLE
        assert not unknown, f"not settable fields of a run: {sorted(unknown)}"
        stamped = {"updated_unix_s": self._clock(), **fields}
        return {name: _plain(value) for name, value in stamped.items()}


def load_run(connection: Connection, run_id: str, *, for_update: bool = False) -> Run:
    """With its history and its curve; raises NotFoundError.

    ``for_update`` locks the row until the commit.
    """
    query = select(_runs).where(_runs.c.id == run_id)
    if for_update:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        raise NotFoundError(f"no run {run_id[:80]!r}")
    table = tables.run_history
    lines = connection.execute(
        select(table).where(table.c.run_id == run_id).order_by(table.c.seq)
    ).mappings()
    history = tuple(
        Transition(RunState(line["state"]), line["time_unix_s"], line["reason"]) for line in lines
    )
    points = tables.curve_points
    lines = connection.execute(
        select(points).where(points.c.run_id == run_id).order_by(points.c.step, points.c.suite)
    ).mappings()
    curve = tuple(
        CurvePoint(**{name: value for name, value in line.items() if name != "run_id"})
        for line in lines
    )
    return replace(_run(row), history=history, curve=curve)


def move_run(
    connection: Connection,
    run_id: str,
    expected: RunState,
    to: RunState,
    reason: str,
    now_unix_s: float,
    *,
    values: dict[str, Any] | None = None,
) -> None:
    """Compare-and-set of the state plus its history line; raises ConcurrentChangeError."""
    change = {"reason": reason, "updated_unix_s": now_unix_s, **(values or {})}
    statement: Update = (
        update(_runs)
        .where(_runs.c.id == run_id, _runs.c.state == expected.value)
        .values(**change, state=to.value)
    )
    if not connection.execute(statement).rowcount:
        run = load_run(connection, run_id)
        raise ConcurrentChangeError(
            f"run {run_id} is {run.state}, no longer {expected}: it cannot go to {to}; "
            "read it again"
        )
    add_history(connection, run_id, to, now_unix_s, reason)


def add_history(
    connection: Connection, run_id: str, state: RunState, now_unix_s: float, reason: str
) -> None:
    connection.execute(
        insert(tables.run_history).values(
            run_id=run_id, state=state.value, time_unix_s=now_unix_s, reason=reason
        )
    )


def _by_request(connection: Connection, run: Run) -> Run | None:
    if not run.request_id:
        return None
    row = one(connection, _runs, _runs.c.request_id == run.request_id)
    return None if row is None else load_run(connection, row["id"])


def _current_lease(connection: Connection, *, for_update: bool = False) -> PoolLease | None:
    query = select(_lease)
    if for_update:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one()
    if not row["holder"]:
        return None
    return PoolLease(row["holder"], row["acquired_unix_s"], row["expires_unix_s"])


def _plain(value: object) -> object:
    return value.value if isinstance(value, Enum) else value


def _values(run: Run) -> dict[str, Any]:
    return {name: _plain(getattr(run, name)) for name in _COLUMNS}


def _run(row: RowMapping) -> Run:
    values = {name: row[name] for name in _COLUMNS}
    values["state"] = RunState(row["state"])
    values["trigger"] = TriggerKind(row["trigger"])
    return Run(**values)
