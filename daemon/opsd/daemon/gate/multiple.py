"""Many tests: several at once, and one after another on the same held-out items."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Adjusted p-values, in the order given: those at or below alpha are rejected together with a
    family-wise error of at most alpha, whatever their dependence.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70.
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return tuple(adjusted)


def spent_alpha(alpha: float, gate_number: int) -> float:
    """What the ``gate_number``-th gate (from 1) on the same items may spend of ``alpha``:
    alpha · 6 / (π² k²).

    All of them together, however many, spend at most ``alpha``: by the union bound no history of
    gates without a true gain promotes anything with a higher probability. Source: the sequence of
    Foster and Stine, Journal of the Royal Statistical Society B 70 (2008) 429-444, section 4,
    without its pay-outs.
    """
    if gate_number < 1:
        raise ValueError(f"gates are counted from 1, got {gate_number}")
    return alpha * 6.0 / (math.pi * gate_number) ** 2


def total_spent(alpha: float, num_gates: int) -> float:
    """What the first ``num_gates`` gates have spent together."""
    return math.fsum(spent_alpha(alpha, number) for number in range(1, num_gates + 1))
