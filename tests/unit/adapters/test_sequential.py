"""The bets are fair under the null whatever the data, and grow where it is wrong."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.adapters.sequential import FRACTIONS, Bets, Comparison, Ranks, mean_e

SHARES = st.floats(0.02, 0.98)
RATES = st.floats(0.0, 1.0)


def wealth_after(comparison: Comparison, y: float, in_canary: bool, share: float) -> Comparison:
    copy = Comparison.load(json.loads(json.dumps(comparison.dump())))
    copy.assigned(y, in_canary=in_canary, share=share)
    return copy


@given(
    share=SHARES,
    incumbent=RATES,
    change=RATES,
    margin=st.floats(0.01, 0.5),
    past=st.lists(st.tuples(st.floats(0, 1), st.booleans(), SHARES), max_size=8),
)
def test_no_bet_expects_to_gain_under_its_null(
    share: float,
    incumbent: float,
    change: float,
    margin: float,
    past: list[tuple[float, bool, float]],
) -> None:
    """The exact expectation over the draw and the outcome, after any past."""
    comparison = Comparison(harm_bound=0.0, margin=margin)
    for y, in_canary, earlier_share in past:
        comparison.assigned(y, in_canary=in_canary, share=earlier_share)

    def expected(canary: float, side: str) -> float:
        total = 0.0
        for in_canary, fails in itertools.product((True, False), repeat=2):
            rate = canary if in_canary else incumbent
            chance = (share if in_canary else 1 - share) * (rate if fails else 1 - rate)
            after = wealth_after(comparison, float(fails), in_canary, share)
            total += chance * getattr(after, side).e_value
        return total

    no_worse = incumbent * change  # at most the incumbent's
    assert expected(no_worse, "harm") <= comparison.harm.e_value * (1 + 1e-9)
    beyond = incumbent + margin
    if beyond <= 1.0:
        assert expected(beyond, "safe") <= comparison.safe.e_value * (1 + 1e-9)


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_wealth_stays_positive(first: float, second: float) -> None:
    comparison = Comparison(0.0, 0.05)
    comparison.paired(first)
    comparison.paired(second)
    assert comparison.harm.e_value > 0
    assert comparison.safe.e_value > 0


def history(
    seed: int, *, incumbent: float, canary: float, share: float, requests: int
) -> tuple[int, int]:
    """(when harm was proven, when the margin of 0.05 was); 0: never."""
    random_ = random.Random(seed)
    comparison = Comparison(0.0, 0.05)
    harm = safe = 0
    for number in range(1, requests + 1):
        drawn = random_.random() < share
        y = float(random_.random() < (canary if drawn else incumbent))
        comparison.assigned(y, in_canary=drawn, share=share)
        harm = harm or number * (comparison.harm.e_value >= 20)
        safe = safe or number * (comparison.safe.e_value >= 20)
    return harm, safe


def test_looking_all_the_time_costs_no_false_alarms() -> None:
    found = [
        history(seed, incumbent=0.1, canary=0.1, share=0.25, requests=300) for seed in range(120)
    ]
    # 5 % of 120 is 6; 14 or more would come about once in 1,000 times.
    assert sum(harm > 0 for harm, _ in found) < 14


def test_a_loss_is_found_and_no_loss_is_proven_small() -> None:
    worse = [
        history(seed, incumbent=0.1, canary=0.4, share=0.25, requests=400) for seed in range(20)
    ]
    assert all(harm for harm, _ in worse)
    assert not any(safe for _, safe in worse)
    same = [
        history(seed, incumbent=0.02, canary=0.02, share=0.25, requests=1500) for seed in range(10)
    ]
    assert sum(safe > 0 for _, safe in same) >= 9


def drifting(seed: int, share: float = 0.1) -> bool:
    """Whether an outage now and then, for everybody, is taken for the canary's doing."""
    random_ = random.Random(seed)
    comparison = Comparison(0.0, 0.05)
    for number in range(500):
        rate = 0.02 if number % 125 < 70 else 0.6
        drawn = random_.random() < share
        comparison.assigned(float(random_.random() < rate), in_canary=drawn, share=share)
        if comparison.harm.e_value >= 20:
            return True
    return False


def test_rates_that_drift_together_are_no_difference() -> None:
    assert sum(drifting(seed) for seed in range(100)) < 13


def test_total_failure_is_found_within_a_few_requests_of_the_canary() -> None:
    comparison = Comparison(0.0, 0.02)
    of_canary = 0
    random_ = random.Random(3)
    for _ in range(2000):
        drawn = random_.random() < 0.05
        of_canary += drawn
        comparison.assigned(float(drawn), in_canary=drawn, share=0.05)
        if comparison.harm.e_value >= 100:
            break
    assert 0 < of_canary <= 6


def test_bounds_are_part_of_the_contract() -> None:
    comparison = Comparison(0.0, 0.05)
    with pytest.raises(AssertionError, match="outside"):
        comparison.assigned(1.5, in_canary=True, share=0.5)
    with pytest.raises(AssertionError, match="compares nothing"):
        comparison.assigned(1.0, in_canary=True, share=1.0)
    with pytest.raises(AssertionError, match="below the worst"):
        Bets().bet(-2.0, worst=-1.0)


def test_wealth_is_spread_and_capped() -> None:
    bets = Bets()
    assert bets.e_value == pytest.approx(1.0)
    bets.bet(1.0, worst=-1.0)
    assert bets.e_value == pytest.approx(1 + sum(FRACTIONS) / len(FRACTIONS))
    for _ in range(5000):
        bets.bet(1.0, worst=-1.0)
    assert 1e298 < bets.e_value < float("inf")
    assert mean_e([1.0, 3.0]) == 2.0


def test_a_place_is_known_before_it_is_counted() -> None:
    ranks = Ranks()
    assert ranks.place(1.0) == 0.5
    assert ranks.place(10.0) == 1.0
    assert ranks.place(0.1) == 0.0
    assert ranks.place(1.0) == pytest.approx(0.5)  # one below, one above, one tie
    assert ranks.place(0.0) == 0.0
