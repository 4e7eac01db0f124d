"""Counts of pairs, kept in the transaction that changes them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from opsd.daemon.store import tables
from opsd.daemon.store.area import chunks
from opsd.daemon.store.locks import PAIRS_KEY
from opsd.daemon.store.pair_rows import size_bytes
from opsd.daemon.types.pair_sets import GroupCount, PairFilter, Quota, QuotaUse
from opsd.daemon.types.pairs import Origin, Pair, PairCounts, PairStatus

_pairs = tables.pairs
_groups = tables.pair_groups
_counts = tables.pair_counts
_use = tables.quota_use

DAY_S: Final = 86400
STATUSES: Final = tuple(PairStatus)
_LOCK = text(f"SELECT pg_advisory_xact_lock({PAIRS_KEY})")

_ADD_TO_GROUP = (
    update(_groups)
    .where(_groups.c.id == bindparam("group"))
    .values(
        {
            column: column + bindparam(f"by_{column.name}")
            for column in (*(_groups.c[f"num_{s.value}"] for s in STATUSES), _groups.c.size_bytes)
        }
    )
)
_ADD_TO_COUNTS = update(_counts).values(
    {
        column: column + bindparam(f"by_{column.name}")
        for column in (*(_counts.c[f"num_{s.value}"] for s in STATUSES), _counts.c.num_new)
    }
)
_FIND_GROUP = select(_groups.c.id).where(
    _groups.c.source == bindparam("of_source"),
    _groups.c.submitter == bindparam("of_submitter"),
    _groups.c.origin == bindparam("of_origin"),
)
_SNAPSHOT_SEQ = select(_counts.c.snapshot_seq)
_FIND_USE = select(_use.c.num_pairs, _use.c.size_bytes).where(
    _use.c.submitter == bindparam("of_submitter"), _use.c.day == bindparam("of_day")
)
_STORED = sum(
    (_groups.c[f"num_{s.value}"] for s in STATUSES if s is not PairStatus.PURGED),
    start=_groups.c.num_verified - _groups.c.num_verified,
)
_FIND_STORED = select(func.coalesce(func.sum(_STORED), 0)).where(
    _groups.c.submitter == bindparam("of_submitter")
)


def _add_to_use(row: sqlite.Insert | postgresql.Insert) -> sqlite.Insert | postgresql.Insert:
    return row.on_conflict_do_update(
        index_elements=["submitter", "day"],
        set_={
            "num_pairs": _use.c.num_pairs + row.excluded.num_pairs,
            "size_bytes": _use.c.size_bytes + row.excluded.size_bytes,
        },
    )


# Built once, like all that runs for every pair: putting a statement together costs more than
# running it.
_ADD_TO_USE = {
    "sqlite": _add_to_use(sqlite.insert(_use)),
    "postgresql": _add_to_use(postgresql.insert(_use)),
}


def lock_pairs(connection: Connection) -> None:
    """Until the commit nobody else changes pairs: looking for a duplicate or at a quota, and then
    storing, is one step."""
    if connection.dialect.name == "postgresql":
        connection.execute(_LOCK)


@dataclass(slots=True)
class _Change:
    by_status: dict[PairStatus, int] = field(default_factory=lambda: defaultdict(int))
    size_bytes: int = 0


class Ledger:
    """Collects what one transaction changes; ``post`` writes it. Needs ``lock_pairs``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._changes: dict[int, _Change] = defaultdict(_Change)
        self._group_ids: dict[tuple[str, str, str], int] = {}
        self._num_new = 0
        self._snapshot_seq: int | None = None

    def find_groups(self, pairs: Sequence[Pair]) -> None:
        """Those of many pairs at once."""
        names = (_groups.c.source, _groups.c.submitter, _groups.c.origin)
        for some in chunks({pair.submitter for pair in pairs}):
            query = select(_groups.c.id, *names).where(_groups.c.submitter.in_(some))
            for key, source, submitter, origin in self._connection.execute(query):
                self._group_ids[source, submitter, origin] = key

    def group_id(self, pair: Pair) -> int:
        """Makes the group where there is none yet."""
        key = (pair.input.source, pair.submitter, pair.origin.value)
        if key not in self._group_ids:
            names = dict(zip(("source", "submitter", "origin"), key, strict=True))
            wanted = {f"of_{name}": value for name, value in names.items()}
            found = self._connection.execute(_FIND_GROUP, wanted).scalar()
            if found is None:
                zeros = {f"num_{status.value}": 0 for status in STATUSES}
                added = self._connection.execute(
                    insert(_groups).values(**names, **zeros, size_bytes=0)
                )
                assert added.inserted_primary_key is not None, "an inserted row has a key"
                found = added.inserted_primary_key[0]
            self._group_ids[key] = int(found)
        return self._group_ids[key]

    def add(self, group_id: int, pair: Pair) -> None:
        """A new pair: newer than every snapshot."""
        change = self._changes[group_id]
        change.by_status[pair.status] += 1
        change.size_bytes += size_bytes(pair)
        self._num_new += pair.status is PairStatus.VERIFIED

    def move(self, row: RowMapping, to: PairStatus | None) -> None:
        """A stored pair (its seq, group_id, status and size_bytes) gets another status, or goes
        (None)."""
        before = PairStatus(row["status"])
        change = self._changes[row["group_id"]]
        change.by_status[before] -= 1
        if to is not None:
            change.by_status[to] += 1
        if to is None or to is PairStatus.PURGED:
            change.size_bytes -= row["size_bytes"]
        if self._is_new(row["seq"]):
            self._num_new += (to is PairStatus.VERIFIED) - (before is PairStatus.VERIFIED)

    def post(self) -> None:
        if not self._changes:
            return
        totals: dict[PairStatus, int] = defaultdict(int)
        rows: list[dict[str, Any]] = []
        for group_id, change in sorted(self._changes.items()):
            row = {f"by_num_{status.value}": change.by_status[status] for status in STATUSES}
            rows.append(row | {"group": group_id, "by_size_bytes": change.size_bytes})
            for status, number in change.by_status.items():
                totals[status] += number
        self._connection.execute(_ADD_TO_GROUP, rows)
        sums = {f"by_num_{status.value}": totals[status] for status in STATUSES}
        self._connection.execute(_ADD_TO_COUNTS, sums | {"by_num_new": self._num_new})

    def _is_new(self, seq: int) -> bool:
        if self._snapshot_seq is None:
            self._snapshot_seq = self._connection.execute(_SNAPSHOT_SEQ).scalar_one()
        return seq > self._snapshot_seq


def recount_new(connection: Connection) -> None:
    """After the snapshots changed; reads the verified pairs since the newest of them."""
    snapshots = tables.snapshots
    newest = connection.execute(
        select(func.coalesce(func.max(snapshots.c.last_pair_seq), 0))
    ).scalar_one()
    new = connection.execute(
        select(func.count())
        .select_from(_pairs)
        .where(_pairs.c.status == PairStatus.VERIFIED.value, _pairs.c.seq > newest)
    ).scalar_one()
    connection.execute(update(_counts).values(num_new=new, snapshot_seq=newest))


def read_counts(connection: Connection) -> PairCounts:
    row = connection.execute(select(_counts)).mappings().one()
    return PairCounts(
        verified=row["num_verified"],
        unverified=row["num_unverified"],
        new_since_last_run=row["num_new"],
        quarantined=row["num_quarantined"],
        purged=row["num_purged"],
    )


def group_where(given: PairFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter that are about groups."""
    found: list[ColumnElement[bool]] = []
    if given.source:
        found.append(_groups.c.source == given.source)
    if given.submitter:
        found.append(_groups.c.submitter == given.submitter)
    if given.origin is not None:
        found.append(_groups.c.origin == given.origin.value)
    return found


def count_matching(connection: Connection, given: PairFilter) -> int:
    """Without looking at pairs; the filter's ids are left out of account."""
    column = _STORED if given.status is None else _groups.c[f"num_{given.status.value}"]
    if not (given.source or given.submitter or given.origin):
        counts = read_counts(connection)
        if given.status is None:
            return counts.verified + counts.unverified + counts.quarantined
        by_status: int = getattr(counts, given.status.value)
        return by_status
    query = select(func.coalesce(func.sum(column), 0)).where(*group_where(given))
    return int(connection.execute(query).scalar_one())


def read_groups(connection: Connection, given: PairFilter) -> list[tuple[int, GroupCount]]:
    """(id, counts) of the groups that the filter covers."""
    rows = connection.execute(
        select(_groups).where(*group_where(given)).order_by(_groups.c.id)
    ).mappings()
    return [
        (
            row["id"],
            GroupCount(
                source=row["source"],
                submitter=row["submitter"],
                origin=Origin(row["origin"]),
                verified=row["num_verified"],
                unverified=row["num_unverified"],
                quarantined=row["num_quarantined"],
                purged=row["num_purged"],
                size_bytes=row["size_bytes"],
            ),
        )
        for row in rows
    ]


def read_use(connection: Connection, submitter: str, now_unix_s: float) -> QuotaUse:
    day = int(now_unix_s // DAY_S)
    today = connection.execute(_FIND_USE, {"of_submitter": submitter, "of_day": day}).one_or_none()
    stored = connection.execute(_FIND_STORED, {"of_submitter": submitter}).scalar_one()
    pairs, size = (0, 0) if today is None else today
    return QuotaUse(submitter, int(pairs), int(size), int(stored), (day + 1) * DAY_S)


def add_use(
    connection: Connection, submitter: str, now_unix_s: float, pairs: int, size: int
) -> None:
    connection.execute(
        _ADD_TO_USE[connection.dialect.name],
        {
            "submitter": submitter,
            "day": int(now_unix_s // DAY_S),
            "num_pairs": pairs,
            "size_bytes": size,
        },
    )


def over_quota(quota: Quota, use: QuotaUse, more_bytes: int) -> str:
    """Why one more pair of so many bytes is refused; "" when it is not."""
    if use.submitter in quota.exempt:
        return ""
    resets = datetime.fromtimestamp(use.resets_unix_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    who = f"submitter {use.submitter!r}"
    if quota.pairs_per_day and use.pairs_today >= quota.pairs_per_day:
        return (
            f"{who} has stored {use.pairs_today} pairs today, and collect.quota.pairs_per_day is "
            f"{quota.pairs_per_day}: send it again after {resets}"
        )
    if quota.bytes_per_day and use.bytes_today + more_bytes > quota.bytes_per_day:
        return (
            f"{who} has stored {use.bytes_today} bytes today, this pair has {more_bytes}, and "
            f"collect.quota.mib_per_day allows {quota.bytes_per_day} bytes: send it again after "
            f"{resets}"
        )
    if quota.pairs_stored and use.pairs_stored >= quota.pairs_stored:
        return (
            f"{who} has {use.pairs_stored} pairs in the store, and collect.quota.pairs_stored is "
            f"{quota.pairs_stored}: it does not reset; ask the operator for more, or for a purge"
        )
    return ""
