"""What changes when what serves changes: the rows, within one transaction.

A change reads the incumbent's row for update first, so that of two daemons that want to change it
the second waits, sees another epoch and gives up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from sqlalchemy import Connection, RowMapping, func, select, update

from opsd.daemon.errors import (
    ConcurrentChangeError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store import canaries, tables
from opsd.daemon.store.api import Change
from opsd.daemon.store.area import MIN_PREFIX_CHARS, write_audit
from opsd.daemon.store.audit import PROMOTING, attest
from opsd.daemon.store.decisions import SIGNED_BY, surroundings
from opsd.daemon.store.gate import write_report
from opsd.daemon.store.runs import load_run, move_run
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.canary import CanaryEnd
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


@dataclass(frozen=True, slots=True)
class Why:
    """Who changes what serves, when, and why; ``detail`` goes into the audit entry as well."""

    actor: str
    reason: str
    now_unix_s: float
    detail: Mapping[str, object] = field(default_factory=dict)


def start_canary(
    connection: Connection, name: str, *, share: float, epoch: int, plan_json: str, why: Why
) -> Change:
    before = expect(connection, epoch)
    adapter = resolve(connection, name)
    if before.canary:
        raise StateError(f"{before.canary} is the canary already: promote it or roll it back first")
    if adapter.state not in (AdapterState.CANDIDATE, AdapterState.RETIRED):
        raise StateError(f"{adapter.name} is {adapter.state}: it cannot become the canary")
    set_state(connection, adapter.name, AdapterState.CANARY)
    _advance_run(connection, adapter, RunState.AWAITING_APPROVAL, RunState.CANARY, why)
    canaries.begin(connection, adapter.name, plan_json, why.now_unix_s)
    after = replace(before, canary=adapter.name, canary_share=share)
    return _change(connection, before, after, adapter.name, why, "canary")


def advance_canary(
    connection: Connection, name: str, *, step: int, share: float, epoch: int, why: Why
) -> Change:
    before = expect(connection, epoch)
    if before.canary != name:
        raise StateError(f"{name} is not the canary: {before.canary or 'there is none'}")
    canaries.move_on(connection, name, step, why.now_unix_s)
    after = replace(before, canary_share=share)
    return _change(connection, before, after, name, why, "canary_advance")


def promote(connection: Connection, name: str, *, epoch: int, why: Why) -> Change:
    before = expect(connection, epoch)
    adapter = resolve(connection, name)
    if adapter.state not in PROMOTABLE:
        raise StateError(f"{adapter.name} is {adapter.state}: it cannot be promoted")
    if before.canary not in ("", adapter.name):
        _withdraw(connection, before.canary, replace(why, reason=f"{adapter.name} was promoted"))
    if before.previous not in ("", BASE, adapter.name):
        set_state(connection, before.previous, AdapterState.RETIRED)
    if before.adapter != BASE:
        set_state(connection, before.adapter, AdapterState.PREVIOUS)
    set_state(connection, adapter.name, AdapterState.INCUMBENT)
    canaries.finish(connection, adapter.name, CanaryEnd.PROMOTED, why.reason, why.now_unix_s)
    _advance_run(connection, adapter, RunState.AWAITING_APPROVAL, RunState.CANARY, why)
    _advance_run(connection, adapter, RunState.CANARY, RunState.PROMOTED, why)
    after = replace(
        before, adapter=adapter.name, previous=before.adapter, canary="", canary_share=0.0
    )
    return _change(connection, before, after, adapter.name, why, "promote")


def rollback(connection: Connection, *, epoch: int, why: Why) -> Change:
    before = expect(connection, epoch)
    if before.canary:
        _withdraw(connection, before.canary, why)
        after = replace(before, canary="", canary_share=0.0)
        return _change(connection, before, after, before.canary, why, "withdraw_canary")
    if not before.previous:
        raise StateError(f"{before.adapter} serves and nothing served before it")
    rolled_back = _rolled_back_by(connection)
    if rolled_back is not None:
        # The command given twice must not serve again what was just taken away, past the votes.
        raise StateError(
            f"{before.adapter} serves since {rolled_back['actor']} rolled back from "
            f"{before.previous} ({rolled_back['reason']!r}): `opsd adapters approve "
            "NAME` is how another one serves"
        )
    if before.adapter != BASE:
        leaving = resolve(connection, before.adapter)
        set_state(connection, leaving.name, AdapterState.PREVIOUS)
        _advance_run(connection, leaving, RunState.PROMOTED, RunState.ROLLED_BACK, why)
    if before.previous != BASE:
        set_state(connection, before.previous, AdapterState.INCUMBENT)
    after = replace(before, adapter=before.previous, previous=before.adapter)
    return _change(connection, before, after, before.previous, why, "rollback")


def reject(connection: Connection, name: str, why: Why, report: GateReport | None = None) -> Change:
    # The same lock as a promotion takes: one of the two comes first and the other sees it.
    now_serves = current(connection, for_update=True)
    adapter = resolve(connection, name)
    if adapter.state is not AdapterState.CANDIDATE:
        raise StateError(f"{adapter.name} is {adapter.state}: only a candidate can be rejected")
    set_state(connection, adapter.name, AdapterState.REJECTED)
    if report is not None:
        write_report(connection, report, why.now_unix_s)
    for state in (RunState.EVALUATING, RunState.AWAITING_APPROVAL):
        _advance_run(connection, adapter, state, RunState.REJECTED, why)
    audit_id = write_audit(
        connection,
        why.now_unix_s,
        actor=why.actor,
        action="adapter.reject",
        subject=adapter.name,
        reason=why.reason,
        detail_json=json.dumps(why.detail, sort_keys=True),
    )
    return Change(now_serves, replace(adapter, state=AdapterState.REJECTED), audit_id)


def current(connection: Connection, *, for_update: bool = False) -> Incumbent:
    query = select(_incumbent)
    if for_update:
        query = query.with_for_update()
    row = connection.execute(query).mappings().one()
    return Incumbent(**{name: value for name, value in row.items() if name != "id"})


def _rolled_back_by(connection: Connection) -> RowMapping | None:
    """The audit entry (action, actor, reason) of the rollback that the incumbent came by."""
    audit = tables.audit
    newest = (
        select(audit.c.action, audit.c.actor, audit.c.reason)
        .where(audit.c.action.in_(("adapter.promote", "adapter.rollback")))
        .order_by(audit.c.id.desc())
        .limit(1)
    )
    entry = connection.execute(newest).mappings().one_or_none()
    return entry if entry is not None and entry["action"] == "adapter.rollback" else None


def expect(connection: Connection, epoch: int) -> Incumbent:
    """The incumbent's row, locked; raises ConcurrentChangeError when it moved on."""
    found = current(connection, for_update=True)
    if found.epoch != epoch:
        raise ConcurrentChangeError(
            f"what serves changed meanwhile (epoch {found.epoch}, not {epoch}): "
            f"{found.adapter} serves since {found.actor or 'the start'} "
            f"({found.reason!r}); look again"
        )
    return found


def resolve(connection: Connection, name: str) -> Adapter:
    """By name, or a unique prefix of the name or of the digest after ``opsd-``."""
    if name == BASE:
        raise NotFoundError("'base' is the model without an adapter, not an adapter")
    exact = select(_adapters).where(_adapters.c.name == name)
    row = connection.execute(exact).mappings().one_or_none()
    if row is not None:
        return adapter_of(row)
    digits = name.removeprefix(PREFIX)
    if len(digits) >= MIN_PREFIX_CHARS:
        begins = func.substr(_adapters.c.name, 1, len(PREFIX + digits)) == PREFIX + digits
        rows = connection.execute(select(_adapters).where(begins).limit(2)).mappings().all()
        if len(rows) == 1:
            return adapter_of(rows[0])
        if rows:
            raise InvalidInputError(f"several adapters begin with {name!r}: give more characters")
    if 0 < len(digits) < MIN_PREFIX_CHARS:
        raise NotFoundError(
            f"no adapter {name[:80]!r}: give {MIN_PREFIX_CHARS} of its digits or more"
        )
    raise NotFoundError(f"no adapter {name[:80]!r}: `opsd adapters list` shows them")


def set_state(connection: Connection, name: str, state: AdapterState) -> None:
    changed = connection.execute(
        update(_adapters).where(_adapters.c.name == name).values(state=state.value)
    ).rowcount
    assert changed == 1, f"the incumbent row names the adapter {name}, which is not stored"


def require_why(actor: str, reason: str) -> None:
    if not reason.strip() or not actor.strip():
        raise InvalidInputError("deciding about an adapter takes an actor and a reason")


def adapter_of(row: RowMapping) -> Adapter:
    return Adapter(**{**row, "state": AdapterState(row["state"])})


def _advance_run(
    connection: Connection, adapter: Adapter, expected: RunState, to: RunState, why: Why
) -> None:
    """Moves the adapter's run on if it stands at ``expected``; an imported adapter has none."""
    try:
        run = load_run(connection, adapter.run_id, for_update=True)
    except NotFoundError:
        return
    if run.state is expected:
        move_run(connection, run.id, expected, to, why.reason, why.now_unix_s)


def _withdraw(connection: Connection, canary: str, why: Why) -> None:
    adapter = resolve(connection, canary)
    set_state(connection, canary, AdapterState.RETIRED)
    canaries.finish(connection, canary, CanaryEnd.WITHDRAWN, why.reason, why.now_unix_s)
    _advance_run(connection, adapter, RunState.CANARY, RunState.ROLLED_BACK, why)


def _change(
    connection: Connection, before: Incumbent, after: Incumbent, subject: str, why: Why, verb: str
) -> Change:
    """Writes the incumbent row and its audit entry."""
    require_why(why.actor, why.reason)
    after = replace(
        after,
        epoch=before.epoch + 1,
        changed_unix_s=why.now_unix_s,
        actor=why.actor,
        reason=why.reason,
    )
    changed = connection.execute(
        update(_incumbent).where(_incumbent.c.epoch == before.epoch).values(**asdict(after))
    ).rowcount
    if changed != 1:
        raise ConcurrentChangeError("what serves changed meanwhile: look again")
    witness = surroundings(connection).witness
    detail: dict[str, object] = {"from": before.adapter, "to": after.adapter, "epoch": after.epoch}
    if witness is not None and f"adapter.{verb}" in PROMOTING:
        detail[SIGNED_BY] = witness.key_id
    if before.canary or after.canary:
        detail |= {"canary": after.canary, "canary_share": after.canary_share}
    audit_id = write_audit(
        connection,
        why.now_unix_s,
        actor=why.actor,
        action=f"adapter.{verb}",
        subject=subject,
        reason=why.reason,
        detail_json=json.dumps(detail | dict(why.detail), sort_keys=True),
    )
    adapter = None if subject == BASE else resolve(connection, subject)
    attest(connection, audit_id, adapter)
    return Change(after, adapter, audit_id)
