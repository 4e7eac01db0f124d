"""Pairs and attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, chunks, one, page
from opsd.daemon.store.pair_counts import (
    count_matching,
    group_where,
    read_counts,
    read_groups,
    read_use,
)
from opsd.daemon.store.pair_rows import next_seqs, pair_of, where
from opsd.daemon.types.pair_sets import GroupCount, PairFilter, QuotaUse
from opsd.daemon.types.pairs import Attempt, Origin, Pair, PairCounts, PairStatus, Rating

_pairs = tables.pairs
_attempts = tables.attempts

FEW = 20_000
"""Of fewer matching pairs the newest are found by sorting them all, of more by reading back from
the newest pair: they are dense enough."""


class PairArea(Area):
    """Implements ``PairStore``."""

    def get_pair(self, pair_id: str) -> Pair:
        def work(connection: Connection) -> Pair:
            row = one(connection, _pairs, _pairs.c.id == pair_id)
            if row is None:
                raise NotFoundError(f"no pair {pair_id[:80]!r}")
            return pair_of(row)

        return self._database.read(work)

    def list_pairs(
        self,
        *,
        limit: int,
        token: str = "",
        status: PairStatus | None = None,
        source: str = "",
        submitter: str = "",
        origin: Origin | None = None,
    ) -> Page[Pair]:
        wanted = PairFilter(status=status, source=source, submitter=submitter, origin=origin)

        def work(connection: Connection) -> Page[Pair]:
            total = count_matching(connection, wanted)
            conditions = where(wanted)
            order: ColumnElement[int] = _pairs.c.seq
            if wanted.names_pairs and total <= FEW:
                groups = select(tables.pair_groups.c.id).where(*group_where(wanted))
                # Only what one index has all of.
                conditions = [*where(PairFilter(status=status)), _pairs.c.group_id.in_(groups)]
                # An expression, lest the planner walks the primary key for the order's sake.
                order = _pairs.c.seq + 0
            return page(
                connection,
                _pairs,
                "seq",
                pair_of,
                limit=limit,
                token=token,
                where=conditions,
                order=order,
                total=total,
            )

        return self._database.read(work)

    def scan_pairs(self, *, after_seq: int, limit: int) -> list[tuple[int, Pair]]:
        """(seq, pair) of the next pairs that are not purged, oldest first."""
        return self.filtered_pairs(PairFilter(), after_seq=after_seq, limit=limit)

    def filtered_pairs(
        self, wanted: PairFilter, *, after_seq: int, limit: int
    ) -> list[tuple[int, Pair]]:
        """(seq, pair) of the next pairs that match, oldest first."""

        def work(connection: Connection) -> list[tuple[int, Pair]]:
            seqs = next_seqs(connection, wanted, after_seq, limit)
            query = select(_pairs).where(_pairs.c.seq.in_(seqs)).order_by(_pairs.c.seq)
            return [(row["seq"], pair_of(row)) for row in connection.execute(query).mappings()]

        return self._database.read(work)

    def count_pairs(self) -> PairCounts:
        return self._database.read(read_counts)

    def pair_groups(self, wanted: PairFilter | None = None) -> list[GroupCount]:
        """Counts of every source, submitter and origin that the filter covers."""
        given = wanted or PairFilter()
        groups = self._database.read(lambda connection: read_groups(connection, given))
        return [group for _, group in groups]

    def quota_use(self, submitter: str) -> QuotaUse:
        return self._database.read(
            lambda connection: read_use(connection, submitter, self._clock())
        )

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]:
        wanted = PairFilter(status=PairStatus.VERIFIED, source=source)
        query = select(_pairs).where(*where(wanted)).order_by(_pairs.c.seq.desc())
        if limit > 0:
            query = query.limit(limit)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [pair_of(row) for row in reversed(rows)]

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        held = tables.snapshot_pairs

        def work(connection: Connection) -> set[str]:
            found: set[str] = set()
            for some in chunks(set(keys)):
                query = (
                    select(_pairs.c.prompt_key)
                    .join(held, held.c.pair_id == _pairs.c.id)
                    .where(_pairs.c.prompt_key.in_(some))
                    .distinct()
                )
                found.update(connection.execute(query).scalars())
            return found

        return self._database.read(work)

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Attempts that are there already are left as they are."""

        def work(connection: Connection) -> None:
            for some in chunks({attempt.id: attempt for attempt in attempts}.values()):
                ids = [attempt.id for attempt in some]
                known = set(
                    connection.execute(
                        select(_attempts.c.id).where(_attempts.c.id.in_(ids))
                    ).scalars()
                )
                rows = [_attempt_values(attempt) for attempt in some if attempt.id not in known]
                if rows:
                    connection.execute(insert(_attempts), rows)

        if attempts:
            self._database.write(work)

    def get_attempt(self, attempt_id: str) -> Attempt:
        return self._database.read(lambda connection: _attempt(connection, attempt_id))

    def set_feedback(self, attempt_id: str, rating: Rating | None, comment: str) -> None:
        """What is not given (None, empty) stays as it was."""
        values: dict[str, Any] = {}
        if rating is not None:
            values["rating"] = rating.value
        if comment:
            values["comment"] = comment

        def work(connection: Connection) -> None:
            _attempt(connection, attempt_id)
            if values:
                connection.execute(
                    update(_attempts).where(_attempts.c.id == attempt_id).values(**values)
                )

        self._database.write(work)


def _attempt_values(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "request_id": attempt.request_id,
        "adapter": attempt.adapter,
        "prompt": attempt.prompt,
        "completion": attempt.completion,
        "completion_tokens": attempt.completion_tokens,
        "created_unix_s": attempt.created_unix_s,
        "rating": attempt.rating.value if attempt.rating is not None else None,
        "comment": attempt.comment,
        "canary_share": attempt.canary_share,
        "caller": attempt.caller,
    }


def _attempt(connection: Connection, attempt_id: str) -> Attempt:
    row = one(connection, _attempts, _attempts.c.id == attempt_id)
    if row is None:
        raise NotFoundError(f"no attempt {attempt_id[:80]!r}")
    return Attempt(
        id=row["id"],
        request_id=row["request_id"],
        adapter=row["adapter"],
        prompt=row["prompt"],
        completion=row["completion"],
        completion_tokens=row["completion_tokens"],
        created_unix_s=row["created_unix_s"],
        rating=Rating(row["rating"]) if row["rating"] is not None else None,
        comment=row["comment"],
        canary_share=row["canary_share"],
        caller=row["caller"],
    )
