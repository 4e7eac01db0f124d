"""How many pairs of which group a run gets: arithmetic on counts, without a database.

A cap on a share is a cap on the share of the batch as it is in the end, so a batch may have to
stay below its limit: with a cap of one half, 1,000 pairs of one submitter and 10 of another make a
batch of 20.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cell:
    """Pairs that the caps treat alike."""

    submitter: str
    is_self_made: bool


@dataclass(frozen=True, slots=True)
class Caps:
    """The size of a batch, and how many of its pairs may be of one submitter, and self-made."""

    size: int
    per_submitter: int
    self_made: int


@dataclass(slots=True)
class Taken:
    """What is in a batch so far."""

    total: int = 0
    by_submitter: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    self_made: int = 0

    def has_room(self, cell: Cell, caps: Caps) -> bool:
        return (
            self.total < caps.size
            and self.by_submitter[cell.submitter] < caps.per_submitter
            and not (cell.is_self_made and self.self_made >= caps.self_made)
        )

    def add(self, cell: Cell) -> None:
        self.total += 1
        self.by_submitter[cell.submitter] += 1
        self.self_made += cell.is_self_made


def largest_batch(
    available: Mapping[Cell, int], limit: int, submitter_share: float, self_made_share: float
) -> Caps:
    """The largest batch of at most ``limit`` pairs in which every cap holds."""
    size = limit
    while True:
        caps = Caps(size, _share(submitter_share, size), _share(self_made_share, size))
        possible = _possible(available, caps)
        if possible >= size:
            return caps
        # What is possible never grows as the batch shrinks, so the first size that is, is largest.
        size = possible


def allocate(
    left: Mapping[int, int], cells: Mapping[int, Cell], taken: Taken, caps: Caps
) -> dict[int, float]:
    """How many of each group's ``left`` pairs to draw next, in proportion to them, but for caps.

    Keys are groups. What a cap takes away is spread over the others.
    """
    need = float(caps.size - taken.total)
    names = {cell.submitter for cell in cells.values()}
    room = {name: caps.per_submitter - taken.by_submitter[name] for name in names}
    wanted = _fill(left, cells, room, need)
    made = [group for group in wanted if cells[group].is_self_made]
    room_made = float(caps.self_made - taken.self_made)
    too_many = sum(wanted[group] for group in made)
    if too_many <= room_made:
        return wanted
    fixed = {group: wanted[group] * room_made / too_many for group in made}
    rest = dict(room)
    for group, number in fixed.items():
        rest[cells[group].submitter] -= math.ceil(number)
    others = {group: number for group, number in left.items() if not cells[group].is_self_made}
    return fixed | _fill(others, cells, rest, need - room_made)


def whole(wanted: Mapping[int, float], offset: float) -> dict[int, int]:
    """Whole numbers with the same sum, each at most one away, in which a group's chance of being
    rounded up is its fraction (systematic sampling with one ``offset`` in [0, 1))."""
    found: dict[int, int] = {}
    before = 0.0
    for group in sorted(wanted):
        after = before + wanted[group]
        # The slack keeps a sum that should be whole from falling short of it.
        number = math.floor(after + offset + 1e-9) - math.floor(before + offset + 1e-9)
        if number > 0:
            found[group] = number
        before = after
    return found


def excess(cells: Iterable[Cell], submitter_share: float, self_made_share: float) -> set[int]:
    """Positions (of ``cells``, in the order drawn) to drop so that every cap holds again, the last
    drawn first."""
    drawn = list(cells)
    available: dict[Cell, int] = defaultdict(int)
    for cell in drawn:
        available[cell] += 1
    caps = largest_batch(available, len(drawn), submitter_share, self_made_share)
    # What is not self-made goes first: it is bound by one cap only.
    order = sorted(range(len(drawn)), key=lambda place: drawn[place].is_self_made)
    taken, dropped = Taken(), set()
    for place in order:
        if taken.has_room(drawn[place], caps):
            taken.add(drawn[place])
        else:
            dropped.add(place)
    return dropped


def _share(share: float, size: int) -> int:
    return math.floor(share * size + 1e-9)


def _possible(available: Mapping[Cell, int], caps: Caps) -> int:
    """Pairs that fit under the caps. Taking what is not self-made first is never worse."""
    vouched: dict[str, int] = defaultdict(int)
    made: dict[str, int] = defaultdict(int)
    for cell, number in available.items():
        (made if cell.is_self_made else vouched)[cell.submitter] += number
    total = 0
    room_made = 0
    for submitter in vouched.keys() | made.keys():
        plain = min(vouched[submitter], caps.per_submitter)
        total += plain
        room_made += min(made[submitter], caps.per_submitter - plain)
    return total + min(room_made, caps.self_made)


def _fill(
    left: Mapping[int, int], cells: Mapping[int, Cell], room: Mapping[str, int], need: float
) -> dict[int, float]:
    """Proportional shares of ``need``, no submitter above its ``room``."""
    of_submitter: dict[str, list[int]] = defaultdict(list)
    for group, number in left.items():
        if number > 0 and room[cells[group].submitter] > 0:
            of_submitter[cells[group].submitter].append(group)
    sums = {name: sum(left[group] for group in groups) for name, groups in of_submitter.items()}
    open_names = set(sums)
    wanted: dict[int, float] = {}
    while open_names and need > 0:
        rate = min(1.0, need / sum(sums[name] for name in open_names))
        full = {name for name in open_names if sums[name] * rate > room[name]}
        for name in full or open_names:
            share = room[name] / sums[name] if full else rate
            for group in of_submitter[name]:
                wanted[group] = left[group] * share
            need -= sums[name] * share
        open_names -= full or open_names
    return wanted
