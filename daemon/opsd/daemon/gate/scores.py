"""avg@k and pass@k of a measured suite, one arm at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opsd.daemon.types.measured import AnswerRecord, Arm, SuiteMeasured


@dataclass(frozen=True, slots=True)
class ArmScores:
    """Means over the items that have an outcome; fractions."""

    num_items: int
    num_samples: int  # drawn for an item, greedy ones left out
    avg_at_k: float  # an answer's chance to be right
    pass_at_k: dict[int, float]  # k → an item's chance that one of k answers is right
    greedy: float | None = None  # accuracy of the greedy answers, where there are any


def pass_at_k(num_samples: int, num_solved: int, k: int) -> float:
    """The unbiased estimate that one of ``k`` answers is right: 1 − C(n−c, k)/C(n, k).

    Source: Chen et al., arXiv 2107.03374, equation 1.
    """
    if not 0 <= num_solved <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"need 0 <= c <= n and 1 <= k <= n, got {num_samples=} {num_solved=} {k=}")
    return 1.0 - math.comb(num_samples - num_solved, k) / math.comb(num_samples, k)


def arm_scores(suite: SuiteMeasured, arm: Arm, *, num_greedy: int = 0) -> ArmScores | None:
    """None where the arm was not measured, or no answer of it could be judged.

    ``num_greedy`` is how many of an item's first answers are greedy (``GateContext.num_greedy``).
    An item of which one draw could not be judged counts with the others.
    """
    answers = [item.answers[arm] for item in suite.items if arm in item.answers]
    # Where nothing is drawn, the greedy answer is all there is.
    first = num_greedy if any(len(some) > num_greedy for some in answers) else 0
    drawn = [judged for some in answers if (judged := _judged(some[first:]))]
    if not drawn:
        return None
    num_samples = max(len(judged) for judged in drawn)
    greedy = [outcome for some in answers for outcome in _judged(some[:num_greedy])]
    return ArmScores(
        num_items=len(drawn),
        num_samples=num_samples,
        avg_at_k=_mean([sum(judged) / len(judged) for judged in drawn]),
        pass_at_k={
            k: _mean([pass_at_k(len(j), sum(j), k) for j in drawn if len(j) >= k])
            for k in _powers_of_two(num_samples)
        },
        greedy=_mean(greedy) if greedy else None,
    )


def _judged(answers: Sequence[AnswerRecord]) -> list[bool]:
    return [answer.solved for answer in answers if answer.solved is not None]


def _powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 … and ``limit`` itself."""
    below = [1 << power for power in range(limit.bit_length()) if 1 << power < limit]
    return [*below, limit]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
