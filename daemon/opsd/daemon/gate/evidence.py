"""From the answers to one suite to the numbers that its verdict rests on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from opsd.daemon.gate.paired import mcnemar_gain_p, mean_difference, sign_flip_p
from opsd.daemon.gate.stats import (
    Interval,
    paired_difference_interval,
    score_p_above,
    score_p_below,
)
from opsd.daemon.types.measured import Arm, ItemMeasured

Outcomes = tuple[tuple[bool, bool], ...]
"""(incumbent solved, candidate solved) of one item, a sample each; never empty."""


@dataclass(frozen=True, slots=True)
class PairedItem:
    """The outcomes of one item; ``cluster`` names what it depends on."""

    outcomes: Outcomes
    cluster: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the paired outcomes say about candidate minus incumbent, a fraction.

    ``method`` is "mcnemar" for single answers to independent items (exact test, Tango's interval)
    and "cluster" otherwise (sign flips, Student's t, cluster-robust).
    """

    n: int
    num_clusters: int
    wins: int
    losses: int
    difference: float
    method: str
    interval: Callable[[float], Interval]
    p_gain: float  # exact, one-sided, against "not better"
    p_loss: float  # exact, one-sided, against "not worse"
    p_above: Callable[[float], float]
    p_below: Callable[[float], float]


def known_pairs(items: Sequence[ItemMeasured]) -> list[PairedItem]:
    """Items with at least one sample that both arms have an outcome of; the others are left out,
    in pairs."""
    paired = []
    for item in items:
        outcomes = tuple(
            (incumbent.solved, candidate.solved)
            for incumbent, candidate in zip(
                item.answers[Arm.INCUMBENT], item.answers[Arm.CANDIDATE], strict=True
            )
            if incumbent.solved is not None and candidate.solved is not None
        )
        if outcomes:
            paired.append(PairedItem(outcomes, _cluster(item)))
    return paired


def imputed_pairs(items: Sequence[ItemMeasured], *, candidate_luck: bool) -> list[PairedItem]:
    """Every item: what is known stays, what is not falls for the candidate or against it."""
    return [
        PairedItem(
            tuple(
                (
                    not candidate_luck if incumbent.solved is None else incumbent.solved,
                    candidate_luck if candidate.solved is None else candidate.solved,
                )
                for incumbent, candidate in zip(
                    item.answers[Arm.INCUMBENT], item.answers[Arm.CANDIDATE], strict=True
                )
            ),
            _cluster(item),
        )
        for item in items
    ]


def weigh(items: Sequence[PairedItem]) -> Evidence:
    """Evidence of the items; without any, it excludes nothing."""
    wins = sum(
        candidate and not incumbent for item in items for incumbent, candidate in item.outcomes
    )
    losses = sum(
        incumbent and not candidate for item in items for incumbent, candidate in item.outcomes
    )
    n = len(items)
    num_clusters = len({item.cluster for item in items})
    if n == 0:
        return Evidence(
            *(0, 0, 0, 0, 0.0, "mcnemar", lambda confidence: Interval(-1.0, 1.0)),
            *(1.0, 1.0, lambda threshold: 1.0, lambda threshold: 1.0),
        )
    if num_clusters == n and all(len(item.outcomes) == 1 for item in items):
        return of_counts(wins, losses, n)
    return _clustered(items, wins, losses)


def of_counts(wins: int, losses: int, n: int) -> Evidence:
    """Evidence of single answers to ``n`` > 0 independent items."""
    return Evidence(
        n=n,
        num_clusters=n,
        wins=wins,
        losses=losses,
        difference=(wins - losses) / n,
        method="mcnemar",
        interval=lambda confidence: paired_difference_interval(
            wins, losses, n, confidence=confidence
        ),
        p_gain=mcnemar_gain_p(wins, losses),
        p_loss=mcnemar_gain_p(losses, wins),
        p_above=lambda threshold: score_p_above(wins, losses, n, threshold),
        p_below=lambda threshold: score_p_below(wins, losses, n, threshold),
    )


def _clustered(items: Sequence[PairedItem], wins: int, losses: int) -> Evidence:
    totals: dict[str, Fraction] = {}
    sizes: dict[str, int] = {}
    for item in items:
        gain = sum(candidate - incumbent for incumbent, candidate in item.outcomes)
        totals[item.cluster] = totals.get(item.cluster, Fraction()) + Fraction(
            gain, len(item.outcomes)
        )
        sizes[item.cluster] = sizes.get(item.cluster, 0) + 1
    estimate = mean_difference([float(total) for total in totals.values()], list(sizes.values()))

    def interval(confidence: float) -> Interval:
        found = estimate.interval(confidence)
        return Interval(max(-1.0, found.low), min(1.0, found.high))

    return Evidence(
        n=len(items),
        num_clusters=len(totals),
        wins=wins,
        losses=losses,
        difference=float(sum(totals.values(), Fraction())) / len(items),
        method="cluster",
        interval=interval,
        p_gain=sign_flip_p(list(totals.values())),
        p_loss=sign_flip_p([-total for total in totals.values()]),
        p_above=estimate.p_above,
        p_below=estimate.p_below,
    )


def _cluster(item: ItemMeasured) -> str:
    # An id and a cluster of one name are two things.
    return f"cluster {item.cluster}" if item.cluster else f"item {item.id}"
