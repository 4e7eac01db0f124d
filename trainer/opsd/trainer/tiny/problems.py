"""Arithmetic stories: drawing them, saying them, solving them, and keeping the splits apart.

A problem starts at 10-99 and adds or subtracts up to five operands; every running total stays
within 1-99. The worked style splits each two-digit operand into tens and ones, one line each; the
reference solution names only the running totals, so whoever reads it must still work the steps out.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate

LOWEST_TOTAL, HIGHEST_TOTAL = 1, 99
TWO_DIGITS = 10

TEACHER_PROMPT = "{problem}\n\nReference solution: {solution}\nNow solve it your own way."

NAMES = ("Tom", "Ana", "Sam", "Mia", "Leo", "Eva", "Oscar", "Emily", "Priya", "Yusuf", "Viktoria")
THINGS = ("apples", "coins", "cards", "marbles")
GAINING = ("gains", "finds")
LOSING = ("loses", "sells")


class Split(StrEnum):
    """Which use a numeric problem belongs to, for every seed and in either phrasing."""

    PRETRAIN = "pretrain"
    """The 60 % the tiny model is pretrained on."""
    OPSD = "opsd"
    """The 20 % that become problem-solution pairs."""
    HELDOUT = "heldout"
    """The 20 % that only ever appear in suites."""


class Operands(StrEnum):
    """Which operands a problem may use."""

    ONE_DIGIT = "one-digit"
    """1-9 only."""
    TWO_DIGIT = "two-digit"
    """10-98 only."""
    MIXED = "mixed"
    """At least one of each."""
    ANY = "any"
    """Either, drawn anew for each operand."""


class Phrasing(StrEnum):
    """How a problem is put to the model."""

    WORD = "word"
    """A story: ``Tom has 61 apples, loses 40, …``."""
    SYMBOLIC = "symbolic"
    """An expression: ``61-40-19``."""


@dataclass(frozen=True)
class Stratum:
    """A kind of problem: how many operations, which operands, which phrasing."""

    name: str
    num_operations: tuple[int, ...]
    operands: Operands
    phrasing: Phrasing = Phrasing.WORD


EASY = Stratum("easy", (2, 3), Operands.ONE_DIGIT)
MEDIUM = Stratum("medium", (2, 3), Operands.MIXED)
HARD = Stratum("hard", (3,), Operands.TWO_DIGIT)
LONG = Stratum("long", (4, 5), Operands.MIXED)
SYMBOLIC_MEDIUM = Stratum("symbolic", (2, 3), Operands.MIXED, Phrasing.SYMBOLIC)
SYMBOLIC_HARD = Stratum("symbolic", (3,), Operands.TWO_DIGIT, Phrasing.SYMBOLIC)


@dataclass(frozen=True)
class Problem:
    """A chain of additions and subtractions; ``deltas`` are the signed operands in order."""

    start: int
    deltas: tuple[int, ...]

    @property
    def totals(self) -> tuple[int, ...]:
        """The running total after each operation; the last one is the answer."""
        return tuple(accumulate(self.deltas, initial=self.start))[1:]

    @property
    def answer(self) -> int:
        return self.totals[-1]

    @property
    def expression(self) -> str:
        """The numeric problem itself, e.g. ``61-40-19``: the identity every split goes by."""
        return f"{self.start}" + "".join(f"{delta:+d}" for delta in self.deltas)

    @property
    def split(self) -> Split:
        digest = hashlib.md5(self.expression.encode(), usedforsecurity=False).digest()
        share = int.from_bytes(digest[:4]) % 10
        if share < 6:
            return Split.PRETRAIN
        return Split.OPSD if share < 8 else Split.HELDOUT

    def reference_solution(self) -> str:
        """The concise key shown to the teacher: the running totals, e.g. ``21, 2``."""
        return ", ".join(str(total) for total in self.totals)

    def worked_solution(self) -> str:
        """The style the model is pretrained to answer in, ending with ``Answer: N``."""
        lines: list[str] = []
        total = self.start
        for step in _split_steps(self.deltas):
            lines.append(f"{total}{step:+d}={total + step}")
            total += step
        return "\n".join([*lines, f"Answer: {total}"])


def _split_steps(deltas: tuple[int, ...]) -> Iterator[int]:
    """Yield the signed tens and then the signed ones of each operand, leaving out zeros."""
    for delta in deltas:
        sign = 1 if delta > 0 else -1
        tens, ones = divmod(abs(delta), 10)
        if tens:
            yield sign * tens * 10
        if ones:
            yield sign * ones


def phrase(problem: Problem, phrasing: Phrasing, rng: random.Random) -> str:
    """Put the problem into words or symbols; ``rng`` chooses the story."""
    if phrasing is Phrasing.SYMBOLIC:
        return problem.expression
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    events = "".join(
        f", {rng.choice(GAINING if delta > 0 else LOSING)} {abs(delta)}" for delta in problem.deltas
    )
    return f"{name} has {problem.start} {things}{events}. How many {things}?"


def draw(
    rng: random.Random, num_operations: int, operands: Operands, split: Split | None = None
) -> Problem:
    """Draw one problem, from ``split`` where one is given.

    Raises:
        ValueError: ``num_operations`` is below 1, or below 2 where the operands must be mixed.
    """
    least = 2 if operands is Operands.MIXED else 1
    if num_operations < least:
        raise ValueError(f"{operands} operands need at least {least} operations: {num_operations}")
    while True:
        problem = _draw_chain(rng, _operand_sizes(rng, num_operations, operands))
        if problem is not None and (split is None or problem.split is split):
            return problem


def _operand_sizes(rng: random.Random, num_operations: int, operands: Operands) -> list[bool]:
    """Return for each operand whether it has two digits."""
    if operands is Operands.ONE_DIGIT or operands is Operands.TWO_DIGIT:
        return [operands is Operands.TWO_DIGIT] * num_operations
    while True:
        sizes = [rng.random() < 0.5 for _ in range(num_operations)]
        if operands is Operands.ANY or len(set(sizes)) > 1:
            return sizes


def _draw_chain(rng: random.Random, has_two_digits: list[bool]) -> Problem | None:
    """Walk from a start within the bounds; None where an operand finds no room."""
    start = total = rng.randint(TWO_DIGITS, HIGHEST_TOTAL)
    deltas: list[int] = []
    for two_digits in has_two_digits:
        least = TWO_DIGITS if two_digits else 1
        most = HIGHEST_TOTAL if two_digits else TWO_DIGITS - 1
        room_up = min(most, HIGHEST_TOTAL - total)
        room_down = min(most, total - LOWEST_TOTAL)
        signed_rooms = [(s, room) for s, room in ((1, room_up), (-1, room_down)) if room >= least]
        if not signed_rooms:
            return None
        sign, room = rng.choice(signed_rooms)
        deltas.append(sign * rng.randint(least, room))
        total += deltas[-1]
    return Problem(start, tuple(deltas))


def draw_distinct(
    rng: random.Random, stratum: Stratum, split: Split, count: int, taken: set[Problem]
) -> list[Problem]:
    """Draw ``count`` problems of a stratum that are not in ``taken``, and add them to it."""
    drawn: list[Problem] = []
    while len(drawn) < count:
        problem = draw(rng, rng.choice(stratum.num_operations), stratum.operands, split)
        if problem not in taken:
            taken.add(problem)
            drawn.append(problem)
    return drawn
