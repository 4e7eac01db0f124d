"""Scales for the plots of learning curves: from a quantity to a place in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

_DIGITS = (1, 2, 5)
_MANY_DECADES = 1e3
_ZERO_SHARE = 0.08  # of a logarithmic axis, for what cost nothing


class Axis(Protocol):
    def place(self, x: float) -> float:
        """0 is the left end, 1 the right."""
        ...

    def ticks(self) -> list[tuple[float, str]]:
        """(place, label)."""
        ...


@dataclass(frozen=True, slots=True)
class LogAxis:
    """Zero has a strip of its own at the left where it occurs."""

    low: float
    high: float
    has_zero: bool

    def place(self, x: float) -> float:
        left = _ZERO_SHARE if self.has_zero else 0.0
        if x <= 0:
            return 0.0
        span = math.log10(self.high / self.low)
        return left + (1 - left) * math.log10(x / self.low) / span

    def ticks(self) -> list[tuple[float, str]]:
        found = [(0.0, "0")] if self.has_zero else []
        few = self.high > _MANY_DECADES * self.low
        for exponent in range(
            math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1
        ):
            for digit in (1,) if few else _DIGITS:
                x = digit * 10.0**exponent
                if self.low * (1 - 1e-9) <= x <= self.high * (1 + 1e-9):
                    found.append((self.place(x), short_number(x)))
        return found


@dataclass(frozen=True, slots=True)
class LinearAxis:
    """From 0."""

    high: float

    def place(self, x: float) -> float:
        return x / self.high

    def ticks(self) -> list[tuple[float, str]]:
        step = 10.0 ** math.floor(math.log10(self.high))
        while self.high / step < 4:
            step /= 2
        count = math.floor(self.high / step + 1e-9)
        return [(k * step / self.high, short_number(k * step)) for k in range(count + 1)]


def log_axis(xs: Iterable[float]) -> LogAxis:
    """Over all of ``xs`` (at least 0), to numbers that begin with 1, 2 or 5."""
    values = list(xs)
    positive = [x for x in values if x > 0]
    low = max(_round_numbers(min(positive, default=1.0), below=True))
    high = min(_round_numbers(max(positive, default=10.0), below=False))
    return LogAxis(low, max(high, 10 * low), has_zero=len(positive) < len(values))


def _round_numbers(x: float, *, below: bool) -> list[float]:
    """Those near ``x`` that are not beyond it on the side asked for."""
    exponent = math.floor(math.log10(x))
    near = [digit * 10.0**e for e in range(exponent - 1, exponent + 2) for digit in _DIGITS]
    return [number for number in near if (number <= x if below else number >= x)]


def linear_axis(xs: Iterable[float]) -> LinearAxis:
    return LinearAxis(max([*xs, 0.0]) or 1.0)


def short_number(value: float) -> str:
    """``250``, ``1.5 k``, ``2 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
