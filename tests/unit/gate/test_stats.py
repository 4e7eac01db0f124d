"""The statistics against exact enumeration, closed forms and an independent likelihood search."""

import math
import random
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.gate.stats import (
    items_to_settle,
    mcnemar_exact_p,
    normal_quantile,
    paired_difference_interval,
    wilson_interval,
)


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int]:
    n = draw(st.integers(1, 400))
    wins = draw(st.integers(0, n))
    return wins, draw(st.integers(0, n - wins)), n


def enumerated_p(wins: int, losses: int) -> float:
    """Two-sided p by walking through every way the discordant pairs could have fallen."""
    m = wins + losses
    extreme = abs(wins - losses)
    hits = sum(abs(m - 2 * sum(flips)) >= extreme for flips in product((0, 1), repeat=m))
    return float(Fraction(hits, 2**m))


@pytest.mark.parametrize("wins", range(8))
@pytest.mark.parametrize("losses", range(7))
def test_mcnemar_equals_enumeration(wins: int, losses: int) -> None:
    assert mcnemar_exact_p(wins, losses) == enumerated_p(wins, losses)


def test_mcnemar_known_values() -> None:
    assert mcnemar_exact_p(0, 0) == 1.0
    assert mcnemar_exact_p(5, 0) == 2 / 32
    assert mcnemar_exact_p(6, 0) == 2 / 64
    assert mcnemar_exact_p(10, 1) == 2 * 12 / 2**11
    assert mcnemar_exact_p(2000, 0) == 2.0**-1999 == 0.0
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact_p(-1, 3)


@given(tables())
def test_mcnemar_is_symmetric_and_a_probability(table: tuple[int, int, int]) -> None:
    wins, losses, _ = table
    p = mcnemar_exact_p(wins, losses)
    assert 0.0 <= p <= 1.0
    assert p == mcnemar_exact_p(losses, wins)


def score_by_search(wins: int, losses: int, n: int, difference: float) -> float:
    """Tango's statistic with the restricted likelihood maximised by search, not by formula."""

    def log_likelihood(p_loss: float) -> float:
        cells = ((wins, p_loss + difference), (losses, p_loss))
        rest = (n - wins - losses, 1.0 - difference - 2.0 * p_loss)
        return sum(k * math.log(max(p, 1e-300)) for k, p in (*cells, rest) if k)

    low, high = max(0.0, -difference), (1.0 - difference) / 2.0
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(200):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        if log_likelihood(left) < log_likelihood(right):
            low = left
        else:
            high = right
    p_loss = (low + high) / 2.0
    variance = n * (2.0 * p_loss + difference - difference**2)
    return (wins - losses - n * difference) / math.sqrt(variance)


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(40, 20, 160), (1, 7, 21), (3, 0, 12), (0, 4, 300), (200, 13, 600)]
)
def test_interval_bounds_solve_the_score_equation(wins: int, losses: int, n: int) -> None:
    z = normal_quantile(0.95)
    interval = paired_difference_interval(wins, losses, n, confidence=0.95)
    assert score_by_search(wins, losses, n, interval.low) == pytest.approx(z, abs=1e-5)
    assert score_by_search(wins, losses, n, interval.high) == pytest.approx(-z, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 30, 600])
def test_interval_without_discordant_pairs_has_a_closed_form(n: int) -> None:
    z = normal_quantile(0.95)
    interval = paired_difference_interval(0, 0, n, confidence=0.95)
    assert interval.high == pytest.approx(z * z / (n + z * z), abs=1e-12)
    assert interval.low == -interval.high


@pytest.mark.parametrize("n", [1, 5, 50])
def test_interval_when_all_are_wins_has_a_closed_form(n: int) -> None:
    # The restricted rate of losses is then (1 - d)/2, which leaves n(1 - d)² = z²(1 - d²).
    z = normal_quantile(0.95)
    interval = paired_difference_interval(n, 0, n, confidence=0.95)
    assert interval.high == 1.0
    assert interval.low == pytest.approx((n - z * z) / (n + z * z), abs=1e-9)


@given(tables(), st.sampled_from([0.8, 0.95, 0.99]))
def test_interval_is_ordered_mirrored_and_holds_the_estimate(
    table: tuple[int, int, int], confidence: float
) -> None:
    wins, losses, n = table
    interval = paired_difference_interval(wins, losses, n, confidence=confidence)
    mirrored = paired_difference_interval(losses, wins, n, confidence=confidence)
    assert -1.0 <= interval.low <= (wins - losses) / n <= interval.high <= 1.0
    assert (mirrored.low, mirrored.high) == (-interval.high, -interval.low)


@given(tables())
def test_interval_excludes_zero_when_the_exact_test_does(table: tuple[int, int, int]) -> None:
    # The score test at 0 is the uncorrected McNemar test, which the exact one never undercuts.
    wins, losses, n = table
    if mcnemar_exact_p(wins, losses) <= 0.05:
        interval = paired_difference_interval(wins, losses, n, confidence=0.95)
        assert interval.low > 0.0 or interval.high < 0.0


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 0, 0), (3, 3, 5), (-1, 0, 4)])
def test_interval_refuses_impossible_tables(wins: int, losses: int, n: int) -> None:
    with pytest.raises(ValueError, match="wins"):
        paired_difference_interval(wins, losses, n, confidence=0.95)


def exact_coverage(p_win: float, p_loss: float, n: int, confidence: float) -> float:
    """Probability that the interval holds the true difference, summed over all tables."""
    covered = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            interval = paired_difference_interval(wins, losses, n, confidence=confidence)
            if interval.low <= p_win - p_loss <= interval.high:
                ways = math.comb(n, wins) * math.comb(n - wins, losses)
                rest = 1.0 - p_win - p_loss
                covered += ways * p_win**wins * p_loss**losses * rest ** (n - wins - losses)
    return covered


@pytest.mark.parametrize(
    ("p_win", "p_loss"), [(0.02, 0.05), (0.1, 0.1), (0.3, 0.05), (0.5, 0.2), (0.05, 0.0)]
)
def test_coverage_by_full_enumeration(p_win: float, p_loss: float) -> None:
    assert exact_coverage(p_win, p_loss, 40, 0.95) >= 0.93


def test_coverage_by_simulation_at_the_size_of_a_suite() -> None:
    rng = random.Random(20260118)
    cache: dict[tuple[int, int], bool] = {}
    n, p_win, p_loss, trials = 300, 0.02, 0.05, 4000
    covered = 0
    for _ in range(trials):
        wins = sum(rng.random() < p_win for _ in range(n))
        losses = sum(rng.random() < p_loss / (1.0 - p_win) for _ in range(n - wins))
        if (wins, losses) not in cache:
            interval = paired_difference_interval(wins, losses, n, confidence=0.95)
            cache[wins, losses] = interval.low <= p_win - p_loss <= interval.high
        covered += cache[wins, losses]
    # Three standard errors of a simulated 95 % are about one point.
    assert 0.94 <= covered / trials <= 0.965


def test_false_pass_rate_of_a_guard_at_its_margin_is_half_alpha() -> None:
    """A candidate exactly as much worse as the margin passes non-inferiority in about 2.5 %."""
    n, p_win, p_loss, margin = 60, 0.05, 0.15, 0.10
    passed = 0.0
    for wins in range(n + 1):
        for losses in range(n + 1 - wins):
            if paired_difference_interval(wins, losses, n, confidence=0.95).low >= -margin:
                ways = math.comb(n, wins) * math.comb(n - wins, losses)
                rest = 1.0 - p_win - p_loss
                passed += ways * p_win**wins * p_loss**losses * rest ** (n - wins - losses)
    assert passed <= 0.035


@pytest.mark.parametrize(
    ("successes", "n"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (295, 300)]
)
def test_wilson_bounds_solve_the_score_equation(successes: int, n: int) -> None:
    z = normal_quantile(0.95)
    interval = wilson_interval(successes, n, confidence=0.95)
    assert 0.0 <= interval.low <= successes / n <= interval.high <= 1.0
    for bound in (interval.low, interval.high):
        distance = abs(successes / n - bound)
        if distance > 0.0:
            assert distance == pytest.approx(z * math.sqrt(bound * (1 - bound) / n))


def test_wilson_refuses_impossible_counts() -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(3, 2, confidence=0.95)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5])
def test_confidence_must_be_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="confidence"):
        normal_quantile(confidence)


def test_items_to_settle_grows_as_the_difference_nears_the_threshold() -> None:
    far = items_to_settle(30, 10, 200, threshold=0.0, confidence=0.95)
    near = items_to_settle(22, 18, 200, threshold=0.0, confidence=0.95)
    assert far is not None
    assert near is not None
    assert far < 200 < near
    assert items_to_settle(20, 20, 200, threshold=0.0, confidence=0.95) is None


def test_items_to_settle_gives_about_the_promised_power() -> None:
    p_win, p_loss, margin = 0.04, 0.05, 0.05
    n = items_to_settle(40, 50, 1000, threshold=-margin, confidence=0.95)
    assert n is not None
    rng = random.Random(7)
    settled = 0
    for _ in range(300):
        draws = [rng.random() for _ in range(n)]
        wins = sum(draw < p_win for draw in draws)
        losses = sum(p_win <= draw < p_win + p_loss for draw in draws)
        settled += paired_difference_interval(wins, losses, n, confidence=0.95).low >= -margin
    assert 0.7 <= settled / 300 <= 0.9
