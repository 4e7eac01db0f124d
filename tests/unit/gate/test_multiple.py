"""Holm, and the error that is spent over gates."""

import numpy as np
import pytest

from opsd.daemon.gate.multiple import holm, spent_alpha, total_spent


def test_holm_as_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    assert holm([]) == ()
    assert holm([0.6, 0.5]) == (1.0, 1.0)


def test_holm_holds_the_family_where_single_tests_do_not() -> None:
    generator = np.random.default_rng(1)
    p = generator.random((4000, 8))
    single = np.mean([(row <= 0.05).any() for row in p])
    adjusted = np.mean([min(holm(list(row))) <= 0.05 for row in p])
    assert single > 0.3
    assert adjusted < 0.06


def test_all_gates_together_spend_no_more_than_allowed() -> None:
    assert spent_alpha(0.05, 1) == pytest.approx(0.0304, abs=1e-4)
    assert spent_alpha(0.05, 24) == pytest.approx(0.0304 / 24**2, abs=1e-6)
    assert 0.0499 < total_spent(0.05, 10_000) < 0.05
    with pytest.raises(ValueError, match="from 1"):
        spent_alpha(0.05, 0)
