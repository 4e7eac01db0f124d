"""Adapters, and the one row that says which of them serves.

A change of what serves reads that row for update first, so that of two daemons that want to change
it the second waits, sees another epoch and gives up.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, replace

from sqlalchemy import Connection, RowMapping, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from opsd.daemon.errors import (
    ConcurrentChangeError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store import tables
from opsd.daemon.store.api import Change
from opsd.daemon.store.area import MIN_PREFIX_CHARS, Area, write_audit
from opsd.daemon.store.gate import write_report
from opsd.daemon.store.runs import load_run, move_run
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import BASE
from opsd.daemon.types.gate import GateReport
from opsd.daemon.types.runs import RunState

_adapters = tables.adapters
_incumbent = tables.incumbent

PREFIX = "opsd-"
PROMOTABLE = (
    AdapterState.CANDIDATE,
    AdapterState.CANARY,
    AdapterState.PREVIOUS,
    AdapterState.RETIRED,
)


class AdapterArea(Area):
    """Implements ``AdapterStore``."""

    def add_adapter(self, adapter: Adapter) -> Adapter:
        def work(connection: Connection) -> Adapter:
            stored = _stored(connection, adapter)
            if stored is not None:
                return stored
            values = asdict(adapter) | {"state": AdapterState.CANDIDATE.value}
            del values["lora_id"]
            try:
                with connection.begin_nested():
                    connection.execute(insert(_adapters).values(**values))
            except IntegrityError:
                stored = _stored(connection, adapter)
                if stored is None:
                    raise
                return stored
            return _resolve(connection, adapter.name)

        return self._database.write(work)

    def get_adapter(self, name: str) -> Adapter:
        return self._database.read(lambda connection: _resolve(connection, name))

    def list_adapters(self) -> list[Adapter]:
        """Newest first."""
        query = select(_adapters).order_by(_adapters.c.lora_id.desc())
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_adapter(row) for row in rows]

    def get_incumbent(self) -> Incumbent:
        return self._database.read(_current)

    def start_canary(
        self, name: str, *, share: float, expected_epoch: int, actor: str, reason: str
    ) -> Change:
        if not 0.0 < share < 1.0:
            raise InvalidInputError(f"a canary's share lies between 0 and 1, not {share}")

        def work(connection: Connection) -> Change:
            before = _expect(connection, expected_epoch)
            adapter = _resolve(connection, name)
            if before.canary:
                raise StateError(
                    f"{before.canary} is the canary already: promote it or roll it back first"
                )
            if adapter.state not in (AdapterState.CANDIDATE, AdapterState.RETIRED):
                raise StateError(f"{adapter.name} is {adapter.state}: it cannot become the canary")
            _set_state(connection, adapter.name, AdapterState.CANARY)
            now = self._clock()
            _advance_run(
                connection, adapter, RunState.AWAITING_APPROVAL, RunState.CANARY, reason, now
            )
            after = replace(before, canary=adapter.name, canary_share=share)
            return _change(connection, before, after, adapter.name, now, actor, reason, "canary")

        return self._database.write(work, name="canary")

    def promote(self, name: str, *, expected_epoch: int, actor: str, reason: str) -> Change:
        def work(connection: Connection) -> Change:
            before = _expect(connection, expected_epoch)
            adapter = _resolve(connection, name)
            if adapter.state not in PROMOTABLE:
                raise StateError(f"{adapter.name} is {adapter.state}: it cannot be promoted")
            now = self._clock()
            if before.canary not in ("", adapter.name):
                _withdraw(connection, before.canary, f"{adapter.name} was promoted", now)
            if before.previous not in ("", BASE, adapter.name):
                _set_state(connection, before.previous, AdapterState.RETIRED)
            if before.adapter != BASE:
                _set_state(connection, before.adapter, AdapterState.PREVIOUS)
            _set_state(connection, adapter.name, AdapterState.INCUMBENT)
            _advance_run(
                connection, adapter, RunState.AWAITING_APPROVAL, RunState.CANARY, reason, now
            )
            _advance_run(connection, adapter, RunState.CANARY, RunState.PROMOTED, reason, now)
            after = replace(
                before, adapter=adapter.name, previous=before.adapter, canary="", canary_share=0.0
            )
            return _change(connection, before, after, adapter.name, now, actor, reason, "promote")

        return self._database.write(work, name="promote")

    def rollback(self, *, expected_epoch: int, actor: str, reason: str) -> Change:
        def work(connection: Connection) -> Change:
            before = _expect(connection, expected_epoch)
            now = self._clock()
            if before.canary:
                _withdraw(connection, before.canary, reason, now)
                after = replace(before, canary="", canary_share=0.0)
                return _change(
                    connection, before, after, before.canary, now, actor, reason, "withdraw_canary"
                )
            if not before.previous:
                raise StateError(f"{before.adapter} serves and nothing served before it")
            if before.adapter != BASE:
                leaving = _resolve(connection, before.adapter)
                _set_state(connection, leaving.name, AdapterState.PREVIOUS)
                _advance_run(
                    connection, leaving, RunState.PROMOTED, RunState.ROLLED_BACK, reason, now
                )
            if before.previous != BASE:
                _set_state(connection, before.previous, AdapterState.INCUMBENT)
            after = replace(before, adapter=before.previous, previous=before.adapter)
            return _change(
                connection, before, after, before.previous, now, actor, reason, "rollback"
            )

        return self._database.write(work, name="rollback")

    def allot_lora_id(self) -> int:
        placeholder = f"allotted-{uuid.uuid4().hex}"

        def work(connection: Connection) -> int:
            # The sequence does not go back when the row goes.
            key = connection.execute(
                insert(_adapters).values(
                    name=placeholder,
                    sha256=placeholder,
                    state=AdapterState.REJECTED.value,
                    run_id="",
                    path="",
                    rank=0,
                    alpha=0.0,
                    size_bytes=0,
                    model_fingerprint="",
                    created_unix_s=self._clock(),
                )
            ).inserted_primary_key
            assert key is not None, "an inserted row has a key"
            connection.execute(delete(_adapters).where(_adapters.c.name == placeholder))
            return int(key[0])

        return self._database.write(work)

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> Change:
        _require_why(actor, reason)

        def work(connection: Connection) -> Change:
            # The same lock as a promotion takes: one of the two comes first and the other sees it.
            current = _current(connection, for_update=True)
            adapter = _resolve(connection, name)
            if adapter.state is not AdapterState.CANDIDATE:
                raise StateError(
                    f"{adapter.name} is {adapter.state}: only a candidate can be rejected"
                )
            _set_state(connection, adapter.name, AdapterState.REJECTED)
            now = self._clock()
            if report is not None:
                write_report(connection, report)
            for state in (RunState.EVALUATING, RunState.AWAITING_APPROVAL):
                _advance_run(connection, adapter, state, RunState.REJECTED, reason, now)
            audit_id = write_audit(
                connection,
                now,
                actor=actor,
                action="adapter.reject",
                subject=adapter.name,
                reason=reason,
            )
            return Change(current, replace(adapter, state=AdapterState.REJECTED), audit_id)

        return self._database.write(work, name="reject")

    def set_adapter_state(self, name: str, state: AdapterState) -> None:
        """For the states that no routing depends on; the others change with the incumbent row."""
        if state in (AdapterState.INCUMBENT, AdapterState.PREVIOUS, AdapterState.CANARY):
            raise StateError(f"{name} becomes {state} by a promotion, rollback or canary only")

        def work(connection: Connection) -> None:
            current = _current(connection, for_update=True)
            adapter = _resolve(connection, name)
            if adapter.name in (current.adapter, current.previous, current.canary):
                raise StateError(f"{adapter.name} is {adapter.state}: what serves depends on it")
            _set_state(connection, adapter.name, state)

        self._database.write(work)


def _stored(connection: Connection, adapter: Adapter) -> Adapter | None:
    query = select(_adapters).where(
        or_(_adapters.c.name == adapter.name, _adapters.c.sha256 == adapter.sha256)
    )
    rows = [_adapter(row) for row in connection.execute(query).mappings()]
    for row in rows:
        if (row.name, row.sha256) != (adapter.name, adapter.sha256):
            raise ConflictError(
                f"adapter {adapter.name} with digest {adapter.sha256} collides with the stored "
                f"{row.name} with digest {row.sha256}: a name stands for one content only"
            )
    return rows[0] if rows else None


def _resolve(connection: Connection, name: str) -> Adapter:
    """By name, or a unique prefix of the name or of the digest after ``opsd-``."""
    if name == BASE:
        raise NotFoundError("'base' is the model without an adapter, not an adapter")
    exact = select(_adapters).where(_adapters.c.name == name)
    row = connection.execute(exact).mappings().one_or_none()
    if row is not None:
        return _adapter(row)
    digits = name.removeprefix(PREFIX)
    if len(digits) >= MIN_PREFIX_CHARS:
        begins = func.substr(_adapters.c.name, 1, len(PREFIX + digits)) == PREFIX + digits
        rows = connection.execute(select(_adapters).where(begins).limit(2)).mappings().all()
        if len(rows) == 1:
            return _adapter(rows[0])
        if rows:
            raise InvalidInputError(f"several adapters begin with {name!r}: give more characters")
    raise NotFoundError(f"no adapter {name[:80]!r}: `opsd adapters list` shows them")


def _current(connection: Connection, *, for_update: bool = False) -> Incumbent:
    query = select(_incumbent)
    if for_update:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one()
    return Incumbent(**{name: value for name, value in row.items() if name != "id"})


def _expect(connection: Connection, epoch: int) -> Incumbent:
    current = _current(connection, for_update=True)
    if current.epoch != epoch:
        raise ConcurrentChangeError(
            f"what serves changed meanwhile (epoch {current.epoch}, not {epoch}): "
            f"{current.adapter} serves since {current.actor or 'the start'} "
            f"({current.reason!r}); look again"
        )
    return current


def _set_state(connection: Connection, name: str, state: AdapterState) -> None:
    changed = connection.execute(
        update(_adapters).where(_adapters.c.name == name).values(state=state.value)
    ).rowcount
    assert changed == 1, f"the incumbent row names the adapter {name}, which is not stored"


def _advance_run(
    connection: Connection,
    adapter: Adapter,
    expected: RunState,
    to: RunState,
    reason: str,
    now_unix_s: float,
) -> None:
    """Moves the adapter's run on if it stands at ``expected``; an imported adapter has none."""
    try:
        run = load_run(connection, adapter.run_id, for_update=True)
    except NotFoundError:
        return
    if run.state is expected:
        move_run(connection, run.id, expected, to, reason, now_unix_s)


def _withdraw(connection: Connection, canary: str, reason: str, now_unix_s: float) -> None:
    adapter = _resolve(connection, canary)
    _set_state(connection, canary, AdapterState.RETIRED)
    _advance_run(connection, adapter, RunState.CANARY, RunState.ROLLED_BACK, reason, now_unix_s)


def _change(
    connection: Connection,
    before: Incumbent,
    after: Incumbent,
    subject: str,
    now_unix_s: float,
    actor: str,
    reason: str,
    verb: str,
) -> Change:
    """Writes the incumbent row and its audit entry."""
    _require_why(actor, reason)
    after = replace(
        after, epoch=before.epoch + 1, changed_unix_s=now_unix_s, actor=actor, reason=reason
    )
    changed = connection.execute(
        update(_incumbent).where(_incumbent.c.epoch == before.epoch).values(**asdict(after))
    ).rowcount
    if changed != 1:
        raise ConcurrentChangeError("what serves changed meanwhile: look again")
    detail = {"from": before.adapter, "to": after.adapter, "epoch": after.epoch}
    if before.canary or after.canary:
        detail |= {"canary": after.canary, "canary_share": after.canary_share}
    audit_id = write_audit(
        connection,
        now_unix_s,
        actor=actor,
        action=f"adapter.{verb}",
        subject=subject,
        reason=reason,
        detail_json=json.dumps(detail, sort_keys=True),
    )
    adapter = None if subject == BASE else _resolve(connection, subject)
    return Change(after, adapter, audit_id)


def _require_why(actor: str, reason: str) -> None:
    if not reason.strip() or not actor.strip():
        raise InvalidInputError("deciding about an adapter takes an actor and a reason")


def _adapter(row: RowMapping) -> Adapter:
    return Adapter(**{**row, "state": AdapterState(row["state"])})
