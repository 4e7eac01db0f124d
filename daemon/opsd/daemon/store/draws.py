"""The pairs of a run: the newest, and a random draw from all, at a cost that follows the batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, func, select

from opsd.daemon.store import tables
from opsd.daemon.store.area import CHUNK, Area, chunks
from opsd.daemon.store.draw_plan import Caps, Cell, Taken, allocate, excess, largest_batch, whole
from opsd.daemon.store.pair_counts import read_groups
from opsd.daemon.store.pair_rows import pair_of
from opsd.daemon.types.pair_sets import SELF_MADE, Draw, DrawPolicy, PairFilter
from opsd.daemon.types.pairs import Origin, Pair, PairStatus
from opsd.daemon.types.text import prompt_key

_pairs = tables.pairs
_VERIFIED = _pairs.c.status == PairStatus.VERIFIED.value

# Built once: a draw from many groups runs it once for each.
_NEXT_OF_GROUP = (
    select(_pairs.c.seq, _pairs.c.sample_key)
    .where(
        _pairs.c.group_id == bindparam("group"),
        _VERIFIED,
        _pairs.c.sample_key >= bindparam("from_key"),
    )
    .order_by(_pairs.c.sample_key)
    .limit(bindparam("at_most"))
)

HeldOutPrompts = Callable[[Sequence[str]], set[str]]
"""Those of the prompts that are held out."""

MAX_ROUNDS = 8
"""Of drawing again in the place of what was held out or drawn already."""
MAX_FACTOR = 4
MIN_STEP = 8
"""Pairs of a group that are read at once, at least."""
NEWEST_SLACK = 4
"""The newest pairs that are looked at, for each one wanted: under a flood from one submitter the
rest is drawn from all."""


class DrawArea(Area):
    """The part of ``PairStore`` that draws."""

    def draw_pairs(
        self, run_id: str, policy: DrawPolicy, *, source: str = "", held_out: HeldOutPrompts
    ) -> Draw:
        """At most ``policy.max_pairs`` verified pairs, each of another problem.

        The share ``policy.recency`` is the newest there are; the rest is a random draw from all,
        stratified by source, submitter and origin in proportion to their numbers. A problem with
        several pairs is represented by its newest, unless a cap keeps that one out. The caps hold
        for the batch that comes out, which may be smaller for it. The same run id draws the same
        from the same store.

        Reads O(batch) pairs through indexes and one row for each source, submitter and origin.
        """
        return self._database.read(
            lambda connection: _Drawing(connection, run_id, policy, source, held_out).draw()
        )


@dataclass(slots=True)
class _Walk:
    """Through one group's pairs in the order of their sample keys, from a random one, around."""

    cursor: int
    left: int
    from_the_start: bool = False


class _Drawing:
    def __init__(
        self,
        connection: Connection,
        run_id: str,
        policy: DrawPolicy,
        source: str,
        held_out: HeldOutPrompts,
    ) -> None:
        self._connection = connection
        self._policy = policy
        self._source = source
        self._held_out = held_out
        self._seed = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:16], "big")
        groups = read_groups(connection, PairFilter(source=source))
        self._cells = {
            key: Cell(group.submitter, group.origin in SELF_MADE)
            for key, group in groups
            if group.verified
        }
        start = self._seed & (2**63 - 1)
        self._walks = {key: _Walk(start, group.verified) for key, group in groups if group.verified}
        self._num_available = sum(walk.left for walk in self._walks.values())
        self._taken = Taken()
        self._drawn: list[tuple[int, Pair, Cell]] = []
        self._problems: set[str] = set()
        self._held_out_problems: set[str] = set()
        self._oldest_looked_at = 2**63

    def draw(self) -> Draw:
        caps = self._caps()
        self._take_newest(caps)
        self._take_random(caps)
        dropped = excess(
            (cell for _, _, cell in self._drawn),
            self._policy.max_submitter_share,
            self._policy.max_self_made_share,
        )
        kept = [one for place, one in enumerate(self._drawn) if place not in dropped]
        kept.sort(key=lambda one: one[0])
        return Draw(
            pairs=tuple(pair for _, pair, _ in kept),
            num_available=self._num_available,
            num_held_out=len(self._held_out_problems),
            last_seq=self._newest_seq(),
        )

    def _caps(self) -> Caps:
        available: dict[Cell, int] = {}
        for key, walk in self._walks.items():
            cell = self._cells[key]
            available[cell] = available.get(cell, 0) + walk.left
        policy = self._policy
        return largest_batch(
            available, policy.max_pairs, policy.max_submitter_share, policy.max_self_made_share
        )

    def _take_newest(self, caps: Caps) -> None:
        wanted = math.ceil(self._policy.recency * caps.size)
        for rows in self._newest(NEWEST_SLACK * wanted):
            for row in self._not_held_out(rows):
                if self._taken.total >= wanted:
                    return
                self._offer(row, caps)
                self._oldest_looked_at = row["seq"]

    def _take_random(self, caps: Caps) -> None:
        for number in range(MAX_ROUNDS):
            left = {key: walk.left for key, walk in self._walks.items()}
            wanted = allocate(left, self._cells, self._taken, caps)
            if not wanted:
                return
            offset = ((self._seed >> 64) + number * 0x9E3779B97F4A7C15) % 2**64 / 2**64
            # Asked for again, more than is needed: some of it will be refused as well.
            factor = min(2**number, MAX_FACTOR)
            counts = whole({key: factor * share for key, share in wanted.items()}, offset)
            places = [place for key, count in counts.items() for place in self._step(key, count)]
            # Of what is too much, no group is left out for coming last.
            places.sort(key=lambda place: place[1] ^ self._seed & (2**63 - 1))
            for some in chunks(seq for seq, _ in places):
                rows = self._rows(some)
                newest = self._newest_of_problem(rows)
                for row in self._not_held_out(rows):
                    better = newest.get(row["prompt_key"], row)
                    # By a stored key of an older normal form it might be a held-out problem.
                    if better is not row and not _same_problem(better, row):
                        better = row
                    # Where the newest is capped the one drawn stands in: nobody's pairs are kept
                    # out by somebody else's newer ones.
                    if not self._offer(better, caps):
                        self._offer(row, caps)

    def _rows(self, seqs: Sequence[int]) -> list[RowMapping]:
        """In the order asked for."""
        query = select(_pairs).where(_pairs.c.seq.in_(seqs))
        found = {row["seq"]: row for row in self._connection.execute(query).mappings()}
        return [found[seq] for seq in seqs]

    def _newest(self, limit: int) -> Iterator[list[RowMapping]]:
        where: list[ColumnElement[bool]] = [_VERIFIED]
        if self._source:
            where.append(_pairs.c.source == self._source)
        below: int | None = None
        while limit > 0:
            query = select(_pairs).where(*where).order_by(_pairs.c.seq.desc())
            if below is not None:
                query = query.where(_pairs.c.seq < below)
            rows = list(self._connection.execute(query.limit(min(limit, CHUNK))).mappings())
            if not rows:
                return
            yield rows
            below, limit = rows[-1]["seq"], limit - len(rows)

    def _step(self, key: int, count: int) -> list[tuple[int, int]]:
        """(seq, sample key) of the next so many of a group, without those looked at among the
        newest."""
        walk = self._walks[key]
        places: list[tuple[int, int]] = []
        while walk.left > 0 and len(places) < count:
            where = {
                "group": key,
                "from_key": walk.cursor,
                "at_most": min(max(count - len(places), MIN_STEP), walk.left),
            }
            found = self._connection.execute(_NEXT_OF_GROUP, where).all()
            for seq, sample_key in found:
                if len(places) == count:
                    break
                walk.cursor = sample_key + 1
                walk.left -= 1
                if seq < self._oldest_looked_at:
                    places.append((seq, sample_key))
            if found:
                continue
            if walk.from_the_start:
                walk.left = 0
            else:
                walk.cursor, walk.from_the_start = 0, True
        return places

    def _newest_of_problem(self, rows: Sequence[RowMapping]) -> dict[str, RowMapping]:
        """By the stored prompt key, the newest verified pair of the problem, where that is another
        than the row's."""
        keys = sorted({row["prompt_key"] for row in rows})
        # An expression, lest SQLite looks for the status: nearly every pair has it.
        verified = _pairs.c.status + "" == PairStatus.VERIFIED.value
        where: list[ColumnElement[bool]] = [verified, _pairs.c.prompt_key.in_(keys)]
        if self._source:
            where.append(_pairs.c.source + "" == self._source)
        newest = select(func.max(_pairs.c.seq)).where(*where).group_by(_pairs.c.prompt_key)
        known = {row["seq"] for row in rows}
        others = set(self._connection.execute(newest).scalars())
        by_seq = {row["seq"]: row for row in self._rows(sorted(others - known))}
        by_seq |= {row["seq"]: row for row in rows if row["seq"] in others}
        return {row["prompt_key"]: row for row in by_seq.values()}

    def _not_held_out(self, rows: Sequence[RowMapping]) -> list[RowMapping]:
        refused = self._held_out([row["prompt"] for row in rows])
        self._held_out_problems |= refused
        return [row for row in rows if row["prompt"] not in refused]

    def _offer(self, row: RowMapping, caps: Caps) -> bool:
        """Whether its problem is in the batch now."""
        problem = prompt_key(row["prompt"])
        if problem in self._problems:
            return True
        cell = Cell(row["submitter"], Origin(row["origin"]) in SELF_MADE)
        if not self._taken.has_room(cell, caps):
            return False
        self._taken.add(cell)
        self._problems.add(problem)
        self._drawn.append((row["seq"], pair_of(row), cell))
        return True

    def _newest_seq(self) -> int:
        for rows in self._newest(1):
            return int(rows[0]["seq"])
        return 0


def _same_problem(a: RowMapping, b: RowMapping) -> bool:
    return prompt_key(a["prompt"]) == prompt_key(b["prompt"])
