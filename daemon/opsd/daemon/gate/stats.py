"""Exact and score-based inference on paired binary outcomes.

Everything here works on the two discordant counts of ``n`` paired items: ``wins``, which only the
candidate solved, and ``losses``, which only the incumbent solved. Pairs on which both agree carry
no information on the difference beyond their number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Interval:
    """A closed interval, ``low <= high``."""

    low: float
    high: float


def normal_quantile(confidence: float) -> float:
    """z with P(|Z| <= z) = ``confidence`` for a standard normal Z; ``confidence`` in (0, 1)."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf(0.5 + confidence / 2.0)


def mcnemar_exact_p(wins: int, losses: int) -> float:
    """Two-sided exact McNemar p-value: a fair-coin binomial test on the discordant pairs.

    Twice the smaller tail, at most 1, in integer arithmetic up to the last division; 1 when there
    is no discordant pair. Source: McNemar, Psychometrika 12 (1947) 153-157; the exact form is the
    sign test.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts must not be negative, got wins={wins} losses={losses}")
    discordant = wins + losses
    term = tail = 1
    for k in range(min(wins, losses)):
        term = term * (discordant - k) // (k + 1)
        tail += term
    # A big-integer quotient is correctly rounded, where a sum of floats would not be.
    return min(1.0, 2 * tail / (1 << discordant))


def paired_difference_interval(wins: int, losses: int, n: int, *, confidence: float) -> Interval:
    """Score interval of p(candidate solves) - p(incumbent solves), within [-1, 1].

    The set of differences that the score test does not reject, the nuisance parameter at its
    restricted maximum-likelihood estimate. Defined for every table: without discordant pairs it is
    symmetric about 0 with half-width z²/(n + z²), and it never leaves [-1, 1].
    Source: Tango, Statistics in Medicine 17 (1998) 891-908.
    """
    if n < 1 or wins < 0 or losses < 0 or wins + losses > n:
        raise ValueError(
            f"need n >= 1 and wins + losses <= n, got wins={wins} losses={losses} n={n}"
        )
    z = normal_quantile(confidence)
    # The mirrored table has the mirrored interval, so one bound's search serves for both.
    return Interval(
        low=-_upper_bound(losses, wins, n, z),
        high=_upper_bound(wins, losses, n, z),
    )


def score_p_above(wins: int, losses: int, n: int, threshold: float) -> float:
    """One-sided p-value of Tango's score test against "the true difference is at most
    ``threshold``", in (-1, 1); it is at most alpha where the interval of confidence 1 - 2·alpha
    lies above."""
    return NormalDist().cdf(-_score_statistic(wins, losses, n, threshold))


def score_p_below(wins: int, losses: int, n: int, threshold: float) -> float:
    """The mirror of ``score_p_above``: against "the true difference is at least ``threshold``"."""
    return NormalDist().cdf(_score_statistic(wins, losses, n, threshold))


def _upper_bound(wins: int, losses: int, n: int, z: float) -> float:
    """Largest difference that the score test does not reject; bisection to the last bit or so."""
    low = (wins - losses) / n
    high = 1.0
    if low >= 1.0:
        return 1.0
    for _ in range(80):
        middle = (low + high) / 2.0
        if _score_statistic(wins, losses, n, middle) < -z:
            high = middle
        else:
            low = middle
    return high


def _score_statistic(wins: int, losses: int, n: int, difference: float) -> float:
    """Tango's T: falls as the hypothesised ``difference`` in (-1, 1) grows."""
    linear = (2 * n - wins + losses) * difference - wins - losses
    constant = -losses * difference * (1.0 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    p_loss = (root - linear) / (4 * n)
    variance = n * (2.0 * p_loss + difference * (1.0 - difference))
    excess = wins - losses - n * difference
    if variance <= 0.0:
        return math.copysign(math.inf, excess) if excess else 0.0
    return excess / math.sqrt(variance)


def wilson_interval(successes: int, n: int, *, confidence: float) -> Interval:
    """Score interval of one proportion, within [0, 1].

    Source: Wilson, Journal of the American Statistical Association 22 (1927) 209-212.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need n >= 1 and 0 <= successes <= n, got {successes} of {n}")
    z = normal_quantile(confidence)
    rate = successes / n
    centre = rate + z * z / (2 * n)
    spread = z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4 * n * n))
    scale = 1.0 + z * z / n
    # Exact at the ends, where rounding would leave 1e-17 or 1 - 1e-16.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == n else (centre + spread) / scale
    return Interval(low, high)


def items_to_settle(
    wins: int, losses: int, n: int, *, threshold: float, confidence: float, power: float = 0.8
) -> int | None:
    """About how many items would put the interval's bound on one side of ``threshold``.

    Assumes that the true rates are as measured (each discordant count raised by a half, so that an
    empty cell does not promise certainty) and asks for the bound to clear the threshold with
    probability ``power``. None when the measured difference is so close to the threshold that more
    than ten million items would be needed. Source: the normal approximation of Connor, Biometrics
    43 (1987) 207-211, with the threshold in place of 0.
    """
    p_win = (wins + 0.5) / (n + 1)
    p_loss = (losses + 0.5) / (n + 1)
    difference = p_win - p_loss
    distance = abs(difference - threshold)
    z = normal_quantile(confidence) + NormalDist().inv_cdf(power)
    variance = p_win + p_loss - difference * difference
    if distance * distance * 1e7 <= z * z * variance:
        return None
    return math.ceil(z * z * variance / (distance * distance))
