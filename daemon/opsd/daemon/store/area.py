"""What the parts of the store share: the database, the clock, pages and the audit line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, func, insert, select, update

from opsd.daemon.errors import InvalidInputError, NotFoundError, StoreError
from opsd.daemon.store import decisions, tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.database import Database
from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import entry_sha256

T = TypeVar("T")

MIN_PREFIX_CHARS = 4
CHUNK = 500
"""Values in one IN list: well under what any database takes as parameters."""


class Area:
    """Base of the store's parts, which are mixed into one class."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock


def chunks(values: Iterable[T]) -> Iterator[list[T]]:
    rest = list(values)
    for start in range(0, len(rest), CHUNK):
        yield rest[start : start + CHUNK]


def one(connection: Connection, table: Table, *where: ColumnElement[bool]) -> RowMapping | None:
    return connection.execute(select(table).where(*where)).mappings().one_or_none()


def page(
    connection: Connection,
    table: Table,
    key: str,
    build: Callable[[RowMapping], T],
    *,
    limit: int,
    token: str,
    where: Sequence[ColumnElement[bool]] = (),
    order: ColumnElement[int] | None = None,
    total: int | None = None,
) -> Page[T]:
    """The rows before ``token``, newest first by the growing column ``key``.

    ``order``: an expression of the same value as the key, where the planner needs a hint.
    ``total``: how many match, where that is known; otherwise they are counted.
    """
    if limit < 1:
        raise InvalidInputError(f"a page holds at least 1 entry, not {limit}")
    column = table.c[key]
    if total is None:
        matching = select(func.count()).select_from(table).where(*where)
        total = connection.execute(matching).scalar_one()
    conditions = list(where)
    if token:
        # Longer than any 64-bit key: no database has such a row, and some refuse the number.
        if not (token.isascii() and token.isdecimal() and len(token) < 19):
            raise InvalidInputError(
                f"{token[:40]!r} is not a page token: send the next_page_token of the page before"
            )
        conditions.append((column if order is None else order) < int(token))
    query = select(table).where(*conditions).order_by(column.desc()).limit(limit + 1)
    if order is not None:
        # Only the keys of what matches are sorted, not the rows.
        keys = select(column).where(*conditions).order_by(order.desc()).limit(limit + 1)
        query = select(table).where(column.in_(keys)).order_by(column.desc())
    rows = connection.execute(query).mappings().all()
    more = len(rows) > limit
    shown = rows[:limit]
    return Page(
        items=tuple(build(row) for row in shown),
        next_token=str(shown[-1][key]) if more else "",
        total=total,
    )


def by_prefix(
    connection: Connection, table: Table, column: ColumnElement[str], prefix: str, thing: str
) -> RowMapping:
    """The one row whose ``column`` is, or else begins with, ``prefix``.

    Raises NotFoundError, or InvalidInputError when several begin with it.
    """
    exact = one(connection, table, column == prefix)
    if exact is not None:
        return exact
    if len(prefix) >= MIN_PREFIX_CHARS:
        query = select(table).where(func.substr(column, 1, len(prefix)) == prefix).limit(2)
        rows = connection.execute(query).mappings().all()
        if len(rows) == 1:
            return rows[0]
        if rows:
            raise InvalidInputError(f"several {thing}s begin with {prefix!r}: give more characters")
    raise NotFoundError(f"no {thing} {prefix[:80]!r}")


# Made once: building and hashing them costs more than running them.
_LOCK_HEAD = select(tables.audit_head).with_for_update()
_ADD = insert(tables.audit)
_MOVE_HEAD = update(tables.audit_head)


def write_audit(
    connection: Connection,
    now_unix_s: float,
    *,
    actor: str,
    action: str,
    subject: str,
    reason: str,
    detail_json: str = "{}",
) -> int:
    """Adds an entry to the end of the chain; every entry of the log goes through here.

    The head's row stays locked until the commit, so that two who write at once write one after the
    other. Whoever locks other rows too locks them before.
    """
    detail = decisions.complete(connection, action, subject, detail_json)
    head = connection.execute(_LOCK_HEAD).mappings().one_or_none()
    if head is None:
        raise StoreError(
            "the table audit_head is empty, so the audit log cannot be continued: somebody emptied "
            "it; restore the database from a backup"
        )
    # The hash is over what will be read back: what no database keeps is replaced before.
    entry = AuditEntry(
        id=head["entry_id"] + 1,
        time_unix_s=now_unix_s + 0.0,  # SQLite has no minus zero
        actor=tables.storable(actor),
        action=tables.storable(action),
        subject=tables.storable(subject),
        reason=tables.storable(reason),
        detail_json=tables.storable(detail),
        prev_sha256=head["entry_sha256"],
    )
    entry = replace(entry, entry_sha256=entry_sha256(entry))
    connection.execute(_ADD, asdict(entry))
    connection.execute(_MOVE_HEAD, {"entry_id": entry.id, "entry_sha256": entry.entry_sha256})
    return entry.id
