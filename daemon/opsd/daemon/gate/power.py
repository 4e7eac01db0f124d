"""What a suite of a given size can tell: smallest detectable differences, and items needed.

All of it rests on the normal approximation for paired proportions (Connor, Biometrics 43 (1987)
207-211), with a threshold in the place of 0 where a margin is asked for. ``discordance`` is the
share of items on which two adapters differ when neither is better; a true difference of ``d``
needs at least ``|d|`` of it, so the larger of the two counts. ``level`` is that of the one-sided
test, in (0, 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

POWER = 0.8
_NORMAL = NormalDist()


def effective_items(cluster_sizes: Iterable[int]) -> float:
    """Independent items that clustered ones are worth at worst, if a cluster's answers all agree.

    (Σm)²/Σm². Source: Kish, Survey Sampling (1965), section 5.4, intraclass correlation 1.
    """
    sizes = list(cluster_sizes)
    total = sum(sizes)
    return total * total / sum(size * size for size in sizes) if sizes else 0.0


def detectable_gain(
    num_items: float, *, discordance: float, level: float, margin: float = 0.0, power: float = POWER
) -> float | None:
    """The smallest true gain that is shown to exceed ``margin`` with probability ``power``.

    None when not even a gain of 1 is.
    """
    if num_items <= 0 or _needed(1.0, margin, discordance, level, power) > num_items:
        return None
    low, high = margin, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if _needed(middle, margin, discordance, level, power) <= num_items:
            high = middle
        else:
            low = middle
    return high


def holdable_margin(
    num_items: float, *, discordance: float, level: float, power: float = POWER
) -> float | None:
    """The smallest margin of which a loss is ruled out with probability ``power`` when nothing has
    changed; None when not even 1 is."""
    if num_items <= 0:
        return None
    margin = _quantiles(level, power) * math.sqrt(discordance / num_items)
    return margin if margin < 1.0 else None


def items_for_gain(
    gain: float, *, discordance: float, level: float, margin: float = 0.0, power: float = POWER
) -> int | None:
    """Items that a true ``gain`` needs to be shown; None unless it exceeds ``margin``."""
    needed = _needed(gain, margin, discordance, level, power)
    return math.ceil(needed) if math.isfinite(needed) else None


def items_for_margin(
    margin: float, *, discordance: float, level: float, power: float = POWER
) -> int | None:
    """Items that ruling out a loss of ``margin`` needs when nothing has changed."""
    if margin <= 0.0:
        return None
    return max(1, math.ceil(_quantiles(level, power) ** 2 * discordance / margin**2))


def _needed(gain: float, margin: float, discordance: float, level: float, power: float) -> float:
    distance = gain - margin
    if distance <= 0.0:
        return math.inf
    discordant = min(1.0, max(discordance, gain))
    at_margin = math.sqrt(max(0.0, discordant - margin * margin))
    at_gain = math.sqrt(max(0.0, discordant - gain * gain))
    spread = _z(level) * at_margin + _NORMAL.inv_cdf(power) * at_gain
    return (spread / distance) ** 2


def _quantiles(level: float, power: float) -> float:
    return _z(level) + _NORMAL.inv_cdf(power)


def _z(level: float) -> float:
    return _NORMAL.inv_cdf(1.0 - level)
