"""What suites can tell, against simulation with the tests that decide."""

import math
import random

import pytest

from opsd.daemon.gate import power
from opsd.daemon.gate.stats import mcnemar_exact_p

LEVEL = 0.05 * 6 / math.pi**2


def shown(n: int, gain: float, discordance: float, level: float, *, draws: int = 1500) -> float:
    """How often the exact one-sided test shows a gain."""
    discordant = max(discordance, gain)
    p_win = (discordant + gain) / 2
    rng = random.Random(7)
    hits = 0
    for _ in range(draws):
        outcomes = [rng.random() for _ in range(n)]
        wins = sum(x < p_win for x in outcomes)
        losses = sum(p_win <= x < discordant for x in outcomes)
        hits += wins > losses and mcnemar_exact_p(wins, losses) / 2 <= level
    return hits / draws


@pytest.mark.parametrize(("n", "discordance"), [(200, 0.2), (400, 0.1), (150, 0.4)])
def test_a_detectable_gain_is_detected_4_times_in_5(n: int, discordance: float) -> None:
    gain = power.detectable_gain(n, discordance=discordance, level=LEVEL)
    assert gain is not None
    assert 0.7 < shown(n, gain, discordance, LEVEL) < 0.9


def test_gain_and_items_are_each_others_inverse() -> None:
    for margin in (0.0, 0.02):
        gain = power.detectable_gain(500, discordance=0.2, level=LEVEL, margin=margin)
        assert gain is not None
        needed = power.items_for_gain(gain, discordance=0.2, level=LEVEL, margin=margin)
        assert needed in (500, 501)
    margin_ = power.holdable_margin(500, discordance=0.2, level=0.025)
    assert margin_ is not None
    assert power.items_for_margin(margin_, discordance=0.2, level=0.025) in (500, 501)


def test_later_gates_more_items_and_margins_move_the_figure_the_right_way() -> None:
    def gain(n: float = 300, level: float = LEVEL, margin: float = 0.0) -> float:
        found = power.detectable_gain(n, discordance=0.2, level=level, margin=margin)
        assert found is not None
        return found

    assert gain(level=LEVEL / 9) > gain() > gain(n=1200)
    assert gain(margin=0.05) > gain() + 0.03


def test_what_cannot_be_told() -> None:
    assert power.detectable_gain(3, discordance=0.2, level=LEVEL) is None
    assert power.detectable_gain(0, discordance=0.2, level=LEVEL) is None
    assert power.holdable_margin(0, discordance=0.2, level=LEVEL) is None
    assert power.holdable_margin(1, discordance=0.5, level=0.001) is None
    assert power.items_for_gain(0.02, discordance=0.2, level=LEVEL, margin=0.02) is None
    assert power.items_for_margin(0.0, discordance=0.2, level=LEVEL) is None


def test_clusters_leave_fewer_items() -> None:
    assert power.effective_items([1] * 40) == 40
    assert power.effective_items([10] * 4) == 4
    assert power.effective_items([37, 1, 1, 1]) == pytest.approx(1600 / 1372)
    assert power.effective_items([]) == 0
