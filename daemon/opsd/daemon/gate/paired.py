"""Inference on paired differences that come in clusters, with several answers an item.

Shape legend: G clusters. A cluster is an item alone, or the items that share a passage or template.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from scipy.special import stdtr, stdtrit

from opsd.daemon.gate.stats import Interval


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its cluster-robust standard error and degrees of freedom."""

    value: float
    standard_error: float
    dof: int

    def interval(self, confidence: float) -> Interval:
        """Two-sided, by Student's t."""
        reach = float(stdtrit(self.dof, 0.5 + confidence / 2.0)) * self.standard_error
        return Interval(self.value - reach, self.value + reach)

    def p_above(self, threshold: float) -> float:
        """One-sided p-value against "the truth is at most ``threshold``"."""
        return float(stdtr(self.dof, -(self.value - threshold) / self.standard_error))

    def p_below(self, threshold: float) -> float:
        """One-sided p-value against "the truth is at least ``threshold``"."""
        return float(stdtr(self.dof, (self.value - threshold) / self.standard_error))


def mean_difference(totals: Sequence[float], num_items: Sequence[int]) -> Estimate:
    """Mean difference of an item, cluster-robust, for at least one cluster.

    (G,) each: the sum over a cluster's items of their differences, each in [-1, 1], and its items.

    Two pseudo-clusters of average size, one won and one lost, are added: without them a table
    without differences would have no width at all, and ten equal answers would prove anything. For
    single answers this is the adjusted interval of Bonett and Price, Journal of Educational and
    Behavioral Statistics 37 (2012) 479-488; the variance is the ratio estimator's of Liang and
    Zeger, Biometrika 73 (1986) 13-22, with G/(G-1).
    """
    size = sum(num_items) / len(num_items)
    totals_G = np.array([*totals, size, -size])
    sizes_G = np.array([*num_items, size, size])
    value = float(totals_G.sum() / sizes_G.sum())
    num = len(totals_G)
    residuals_G = totals_G - value * sizes_G
    variance = num / (num - 1) * float(residuals_G @ residuals_G) / float(sizes_G.sum()) ** 2
    return Estimate(value, math.sqrt(variance), num - 1)


def sign_flip_p(totals: Sequence[Fraction]) -> float:
    """One-sided exact p-value of a gain: how often clusters whose signs are drawn by fair coins
    sum to at least what was seen. (G,) exact sums of a cluster's differences.

    Exact where neither adapter is better: each cluster's difference is then as likely its
    negative. With one answer an item and no clusters this is the one-sided exact McNemar test.
    Source: Fisher, The Design of Experiments (1935), section 21; as a distribution over sums by
    convolution: Pagano and Tritchler, Journal of the American Statistical Association 78 (1983)
    435-440.
    """
    unit = math.lcm(*(total.denominator for total in totals))
    steps = [abs(int(total * unit)) for total in totals if total]
    seen = sum(int(total * unit) for total in totals)
    if not steps:
        return 1.0
    divisor = math.gcd(*steps)
    steps = [step // divisor for step in steps]
    seen //= divisor
    # chance[i]: of the sum i - sum(steps), in steps of 2 by parity left as zeros.
    chance = np.zeros(2 * sum(steps) + 1)
    middle = sum(steps)
    chance[middle] = 1.0
    reached = 0
    for step in steps:
        low, high = middle - reached, middle + reached + 1
        now = chance[low:high] * 0.5
        chance[low:high] = 0.0
        chance[low + step : high + step] += now
        chance[low - step : high - step] += now
        reached += step
    return min(1.0, float(chance[middle + seen :].sum()))


def mcnemar_gain_p(wins: int, losses: int) -> float:
    """One-sided exact McNemar p-value of a gain, in integer arithmetic up to the last division."""
    discordant = wins + losses
    term = tail = 1
    for k in range(losses):
        term = term * (discordant - k) // (k + 1)
        tail += term
    return tail / (1 << discordant)
