"""Canaries: which step one is in, and what its comparison has counted."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, RowMapping, insert, select, update

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks
from opsd.daemon.types.canary import Canary, CanaryEnd

_canaries = tables.canaries
_callers = tables.canary_callers
_RUNNING = CanaryEnd.RUNNING.value

CanaryCallers = Mapping[str, Iterable[str]]
"""Stream → hashed callers."""


class CanaryArea(Area):
    """Implements ``CanaryStore``, but for the changes of what serves."""

    def get_canary(self, adapter: str) -> Canary:
        def work(connection: Connection) -> Canary:
            found = newest(connection, adapter)
            if found is None:
                raise NotFoundError(f"{adapter[:80]} has never been a canary")
            return found

        return self._database.read(work)

    def list_canaries(self, *, limit: int) -> list[Canary]:
        query = select(_canaries).order_by(_canaries.c.id.desc()).limit(limit)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_canary(row) for row in rows]

    def canary_callers(self, canary_id: int) -> dict[str, set[str]]:
        query = select(_callers).where(_callers.c.canary_id == canary_id)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        found: dict[str, set[str]] = {}
        for row in rows:
            found.setdefault(row["stream"], set()).add(row["caller"])
        return found

    def save_canary(self, canary_id: int, statistics_json: str, callers: CanaryCallers) -> None:
        """The statistics, and the callers that were counted since the last call: together, or a
        restart would count some twice. A canary that has ended is left as it is."""

        def work(connection: Connection) -> None:
            changed = connection.execute(
                update(_canaries)
                .where(_canaries.c.id == canary_id, _canaries.c.end == _RUNNING)
                .values(statistics_json=statistics_json)
            ).rowcount
            if changed:
                add_callers(connection, canary_id, callers)

        self._database.write(work, name="canary-save")


def begin(connection: Connection, adapter: str, plan_json: str, now_unix_s: float) -> None:
    connection.execute(
        insert(_canaries).values(
            adapter=adapter,
            salt=secrets.token_hex(8),
            plan_json=plan_json,
            step=0,
            started_unix_s=now_unix_s,
            step_started_unix_s=now_unix_s,
            statistics_json="{}",
            end=_RUNNING,
            ended_unix_s=0.0,
            reason="",
        )
    )


def move_on(connection: Connection, adapter: str, step: int, now_unix_s: float) -> None:
    connection.execute(
        update(_canaries)
        .where(_canaries.c.adapter == adapter, _canaries.c.end == _RUNNING)
        .values(step=step, step_started_unix_s=now_unix_s)
    )


def finish(
    connection: Connection, adapter: str, end: CanaryEnd, reason: str, now_unix_s: float
) -> None:
    """A no-op for an adapter that is no canary."""
    connection.execute(
        update(_canaries)
        .where(_canaries.c.adapter == adapter, _canaries.c.end == _RUNNING)
        .values(end=end.value, ended_unix_s=now_unix_s, reason=reason)
    )


def newest(connection: Connection, adapter: str) -> Canary | None:
    query = (
        select(_canaries)
        .where(_canaries.c.adapter == adapter)
        .order_by(_canaries.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return None if row is None else _canary(row)


def add_callers(connection: Connection, canary_id: int, callers: CanaryCallers) -> None:
    for stream, names in callers.items():
        for some in chunks(set(names)):
            _add_some(connection, canary_id, stream, some)


def _add_some(connection: Connection, canary_id: int, stream: str, some: Sequence[str]) -> None:
    known = set(
        connection.execute(
            select(_callers.c.caller).where(
                _callers.c.canary_id == canary_id,
                _callers.c.stream == stream,
                _callers.c.caller.in_(some),
            )
        ).scalars()
    )
    rows = [
        {"canary_id": canary_id, "stream": stream, "caller": caller}
        for caller in some
        if caller not in known
    ]
    if rows:
        connection.execute(insert(_callers), rows)


def _canary(row: RowMapping) -> Canary:
    return Canary(**{**row, "end": CanaryEnd(row["end"])})
