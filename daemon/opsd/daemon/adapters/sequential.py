"""Comparing two streams while they run, validly however often one looks.

A test is a game: it starts with a wealth of 1 and bets on every observation before it is made. If
the null hypothesis holds, no strategy expects to gain, so the wealth ever reaches 1/α with a
probability of at most α (Ville's inequality): one may look after every observation and stop when
one likes. Sources:

- the wealth ∏ (1 + λ_t · gain_t) of predictable bets on bounded observations: Waudby-Smith and
  Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86 (2024),
  arXiv:2010.09686, the capital process and its one-sided bets; several bets at once, averaged, are
  their diversified Kelly betting, and the mixture over constant fractions is the universal
  portfolio of Ryu and Bhatt, arXiv:2207.12382;
- two streams: Turner, Ly and Grünwald, "Generic E-variables for exact sequential k-sample tests
  that allow for optional stopping", JSPI 230 (2024), arXiv:2106.02693. For Bernoulli streams with
  rates a, b and a share π of b, their E-variable p_b(y)/p_c(y) with c = (1-π)a + πb (their
  Theorem 1, with a random group for a block) is a bet λ = π(1-π)(b-a)/(c(1-c)) on the
  ``assigned`` difference below: the same family of bets, without assuming Bernoulli;
- several tests at once: the mean of e-values is an e-value under any dependence: Vovk and Wang,
  "E-values: calibration, combination and applications", Ann. Stat. 49 (2021), arXiv:1912.06116.

Pure: imports nothing of the daemon.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

FRACTIONS = tuple(0.9 * 0.5**power for power in range(10))
"""Of the boldest bet that cannot lose everything; wealth is spread over them evenly.

After n observations the best constant fraction is within a factor of two of one of these for any
effect that n could show, and the spread costs a factor of 10 in wealth at most.
"""

_MOST = 1e300  # stopping to bet is a bet too; what was lost below 1e-308 stays lost
_BINS_PER_E_FOLD = 8.0


@dataclass(slots=True)
class Bets:
    """Wealth of bets against a null under which E[gain | past] <= 0, one for each fraction."""

    wealths: list[float] = field(default_factory=lambda: [1.0] * len(FRACTIONS))
    total: float = float(len(FRACTIONS))  # of the wealths

    def bet(self, gain: float, worst: float) -> None:
        """``worst`` < 0 is the least that ``gain`` could have been, known before it was."""
        assert worst < 0.0, f"a bet that cannot be lost (worst {worst}) is no bet"
        assert gain >= worst - 1e-9, f"a gain of {gain} below the worst, {worst}"
        odds = gain / -worst
        self.wealths = [
            wealth * (1.0 + fraction * odds)
            for wealth, fraction in zip(self.wealths, FRACTIONS, strict=True)
        ]
        self.total = sum(self.wealths)
        if self.total > _MOST:
            self.wealths = [min(_MOST, wealth) for wealth in self.wealths]

    @property
    def e_value(self) -> float:
        """Wealth now; E[e_value] <= 1 under the null at any stopping time."""
        return min(_MOST, self.total / len(FRACTIONS))


@dataclass(slots=True)
class Comparison:
    """One metric y in [0, 1], more is worse, of a canary (b) and an incumbent (a).

    Two games on the difference d = E[y_b] - E[y_a] of each observation given the past:
    ``harm`` bets against d <= ``harm_bound``, ``safe`` against d >= ``margin``.
    """

    harm_bound: float
    margin: float
    harm: Bets = field(default_factory=Bets)
    safe: Bets = field(default_factory=Bets)
    num_canary: int = 0
    num_incumbent: int = 0
    sum_canary: float = 0.0
    sum_incumbent: float = 0.0
    num_pairs: int = 0
    sum_pairs: float = 0.0  # of canary minus incumbent

    def assigned(self, y: float, *, in_canary: bool, share: float) -> None:
        """An observation whose arm was drawn: the canary with probability ``share``, in (0, 1).

        z = (y - c)(A - π)/(π(1 - π)) has the mean E[y_b] - E[y_a] whatever c is, as long as c was
        known before: it is the estimate of the common mean, which makes z vary least. The only
        assumption is that the draw A does not depend on the past, nor y on it but through the
        adapter; y may drift and depend on its past at will.
        """
        assert 0.0 <= y <= 1.0, f"an observation of {y} is outside [0, 1]"
        assert 0.0 < share < 1.0, f"a share of {share} compares nothing"
        seen = self.num_canary + self.num_incumbent
        c = (self.sum_canary + self.sum_incumbent + 0.5) / (seen + 1)
        z = (y - c) * ((1.0 if in_canary else 0.0) - share) / (share * (1.0 - share))
        low = min(-c / share, -(1.0 - c) / (1.0 - share))
        high = max((1.0 - c) / share, c / (1.0 - share))
        self._bet(z, low, high)
        if in_canary:
            self.num_canary += 1
            self.sum_canary += y
        else:
            self.num_incumbent += 1
            self.sum_incumbent += y

    def paired(self, difference: float, *, largest: float = 1.0) -> None:
        """Both adapters answered one request; canary minus incumbent, at most ``largest`` apart.

        Requests may depend on each other at will.
        """
        self._bet(difference, -largest, largest)
        self.num_pairs += 1
        self.sum_pairs += difference

    def _bet(self, z: float, low: float, high: float) -> None:
        self.harm.bet(z - self.harm_bound, low - self.harm_bound)
        self.safe.bet(self.margin - z, self.margin - high)

    @property
    def mean_canary(self) -> float:
        return self.sum_canary / self.num_canary if self.num_canary else 0.0

    @property
    def mean_incumbent(self) -> float:
        return self.sum_incumbent / self.num_incumbent if self.num_incumbent else 0.0

    @property
    def mean_pair(self) -> float:
        return self.sum_pairs / self.num_pairs if self.num_pairs else 0.0

    def dump(self) -> dict[str, object]:
        """As JSON; ``load`` reads it."""
        return {
            "bounds": [self.harm_bound, self.margin],
            "harm": self.harm.wealths,
            "safe": self.safe.wealths,
            "counts": [self.num_canary, self.num_incumbent, self.num_pairs],
            "sums": [self.sum_canary, self.sum_incumbent, self.sum_pairs],
        }

    @classmethod
    def load(cls, kept: Mapping[str, list[float]]) -> Comparison:
        counts = [int(count) for count in kept["counts"]]
        return cls(
            kept["bounds"][0],
            kept["bounds"][1],
            Bets(list(kept["harm"]), sum(kept["harm"])),
            Bets(list(kept["safe"]), sum(kept["safe"])),
            num_canary=counts[0],
            num_incumbent=counts[1],
            sum_canary=kept["sums"][0],
            sum_incumbent=kept["sums"][1],
            num_pairs=counts[2],
            sum_pairs=kept["sums"][2],
        )


@dataclass(slots=True)
class Ranks:
    """Turns positive numbers of any size into places among those before, in [0, 1].

    The place is the share of earlier ones that were smaller, ties counted half, so that the
    difference of two streams' mean places is P(one of the first > one of the second) - 1/2 about.
    Kept in bins an eighth of a factor e wide: what lies in one bin is a tie.
    """

    bins: dict[int, int] = field(default_factory=dict)
    total: int = 0

    def place(self, value: float) -> float:
        """The value's place, which then counts for those after it."""
        key = bin_of(value)
        before, self.total = self.total, self.total + 1
        below = sum([count for other, count in self.bins.items() if other < key])
        same = self.bins.get(key, 0)
        self.bins[key] = same + 1
        return (below + 0.5 * same) / before if before else 0.5


def bin_of(value: float) -> int:
    return math.floor(_BINS_PER_E_FOLD * math.log(max(value, 1e-6)))


def mean_e(values: list[float]) -> float:
    """An e-value of "all nulls hold", from one of each."""
    return sum(values) / len(values)
