"""What the parts of the store share: the database, the clock, pages and the audit line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, func, insert, select

from opsd.daemon.errors import InvalidInputError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.database import Database

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
) -> Page[T]:
    """The rows before ``token``, newest first by the growing column ``key``."""
    if limit < 1:
        raise InvalidInputError(f"a page holds at least 1 entry, not {limit}")
    column = table.c[key]
    total = connection.execute(select(func.count()).select_from(table).where(*where)).scalar_one()
    query = select(table).where(*where).order_by(column.desc()).limit(limit + 1)
    if token:
        # Longer than any 64-bit key: no database has such a row, and some refuse the number.
        if not (token.isascii() and token.isdecimal() and len(token) < 19):
            raise InvalidInputError(
                f"{token[:40]!r} is not a page token: send the next_page_token of the page before"
            )
        query = query.where(column < int(token))
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
    result = connection.execute(
        insert(tables.audit).values(
            time_unix_s=now_unix_s,
            actor=actor,
            action=action,
            subject=subject,
            reason=reason,
            detail_json=detail_json,
        )
    )
    key = result.inserted_primary_key
    assert key is not None, "an inserted row has a key"
    return int(key[0])
