"""Scales for the plots of learning curves: from a quantity to a place in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

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
    """Powers of ten; zero has a strip of its own at the left where it occurs."""

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
        first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
        for exponent in range(first, last + 1):
            found.append((self.place(10.0**exponent), short_number(10.0**exponent)))
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
    """Over all of ``xs`` (at least 0), to whole powers of ten."""
    values = list(xs)
    positive = [x for x in values if x > 0]
    low = 10.0 ** math.floor(math.log10(min(positive))) if positive else 1.0
    high = 10.0 ** math.ceil(math.log10(max(positive))) if positive else 10.0
    return LogAxis(low, max(high, 10 * low), has_zero=len(positive) < len(values))


def linear_axis(xs: Iterable[float]) -> LinearAxis:
    return LinearAxis(max([*xs, 0.0]) or 1.0)


def short_number(value: float) -> str:
    """``250``, ``1.5 k``, ``2 M``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
