"""Clusters, several samples, sign flips."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.gate.evidence import PairedItem, weigh
from opsd.daemon.gate.paired import mcnemar_gain_p, mean_difference, sign_flip_p


def by_enumeration(totals: list[Fraction]) -> float:
    seen = sum(totals)
    flips = itertools.product((-1, 1), repeat=len(totals))
    sums = [sum(s * t for s, t in zip(signs, totals, strict=True)) for signs in flips]
    return sum(value >= seen for value in sums) / len(sums)


@given(st.lists(st.fractions(-1, 1, max_denominator=6), min_size=1, max_size=8))
def test_sign_flips_are_those_of_all_enumerated(totals: list[Fraction]) -> None:
    assert sign_flip_p(totals) == pytest.approx(by_enumeration(totals), abs=1e-12)


@given(st.integers(0, 40), st.integers(0, 40))
def test_of_single_answers_sign_flips_are_mcnemar(wins: int, losses: int) -> None:
    totals = [Fraction(1)] * wins + [Fraction(-1)] * losses + [Fraction(0)] * 5
    assert sign_flip_p(totals) == pytest.approx(mcnemar_gain_p(wins, losses), abs=1e-12)


def test_no_difference_at_all_shows_nothing() -> None:
    assert sign_flip_p([Fraction(0)] * 9) == 1.0
    estimate = mean_difference([0.0] * 9, [1] * 9)
    assert estimate.value == 0.0
    # Ten equal answers prove little: the reach is a fifth at least.
    assert estimate.interval(0.95).high > 0.2


def test_interval_covers_clustered_differences() -> None:
    """Items of a cluster move together; an interval that took them for independent would not
    cover."""
    generator = np.random.default_rng(3)
    covered = 0
    trials = 600
    for _ in range(trials):
        moods = generator.normal(0.0, 0.3, size=40)
        totals, sizes = [], []
        for mood in moods:
            size = int(generator.integers(2, 12))
            values = np.clip(generator.normal(mood, 0.1, size=size), -1, 1)
            totals.append(float(values.sum()))
            sizes.append(size)
        interval = mean_difference(totals, sizes).interval(0.95)
        covered += interval.low <= 0.0 <= interval.high
    assert covered / trials > 0.92


def test_items_of_a_cluster_count_less_than_items_alone() -> None:
    outcomes = [((False, True),)] * 30 + [((True, False),)] * 10 + [((True, True),)] * 60
    alone = weigh([PairedItem(o, f"item {n}") for n, o in enumerate(outcomes)])
    together = weigh([PairedItem(o, f"cluster {n // 10}") for n, o in enumerate(outcomes)])
    assert alone.method == "mcnemar"
    assert together.method == "cluster"
    assert together.difference == alone.difference
    wide, narrow = together.interval(0.95), alone.interval(0.95)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)
    assert together.p_gain > 10 * alone.p_gain


def test_several_samples_are_averaged_within_their_item() -> None:
    items = [PairedItem(((False, True), (False, True), (True, True), (True, False)), "a")]
    found = weigh(items)
    assert found.difference == pytest.approx(1 / 4)
    assert (found.wins, found.losses, found.n) == (2, 1, 1)
    assert found.method == "cluster"


def test_threshold_tests_agree_with_the_interval() -> None:
    outcomes = [((False, True), (True, True))] * 30 + [((True, False), (True, True))] * 12
    found = weigh([PairedItem(o, str(n)) for n, o in enumerate(outcomes * 3)])
    interval = found.interval(0.95)
    assert found.p_above(interval.low) == pytest.approx(0.025, abs=1e-6)
    assert found.p_below(interval.high) == pytest.approx(0.025, abs=1e-6)
    assert math.isclose(found.p_above(0.1) + found.p_below(0.1), 1.0)
