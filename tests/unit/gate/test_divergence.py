"""Truncated entropy and KL: exact where everything is known, lower bounds else."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd.daemon.gate.divergence import mean_entropy, mean_kl
from opsd.daemon.types.engine import TokenScore


def scores(logits: np.ndarray, num_top: int, token: int = 0) -> tuple[TokenScore, ...]:
    """One position, as an engine tells it."""
    logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    top = [token, *np.argsort(-logprobs)[:num_top].tolist()]
    return (TokenScore(token, {v: float(logprobs[v]) for v in top}),)


def exact(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    def softmax(logits: np.ndarray) -> np.ndarray:
        weights = np.exp(logits - logits.max())
        return np.asarray(weights / weights.sum())

    p, q = softmax(ours), softmax(theirs)
    return float(-(p * np.log(p)).sum()), float((p * np.log(p / q)).sum())


logits = st.lists(st.floats(-8, 8), min_size=12, max_size=12).map(np.array)


@settings(max_examples=200)
@given(logits, logits)
def test_all_tokens_give_the_exact_figures(ours: np.ndarray, theirs: np.ndarray) -> None:
    entropy, kl = exact(ours, theirs)
    assert mean_entropy(scores(ours, 12)) == pytest.approx(entropy, abs=1e-5)
    assert mean_kl(scores(ours, 12), scores(theirs, 12)) == pytest.approx(kl, abs=1e-5)


@settings(max_examples=200)
@given(logits, logits, st.integers(1, 11), st.integers(0, 11))
def test_the_top_gives_lower_bounds(
    ours: np.ndarray, theirs: np.ndarray, num_top: int, token: int
) -> None:
    entropy, kl = exact(ours, theirs)
    mine, other = scores(ours, num_top, token), scores(theirs, num_top, token)
    assert 0.0 <= mean_entropy(mine) <= entropy + 1e-5
    assert 0.0 <= mean_kl(mine, other) <= kl + 1e-5
    assert mean_kl(mine, mine) == pytest.approx(0.0, abs=1e-9)


def test_means_are_over_positions() -> None:
    sure = TokenScore(1, {1: 0.0})
    coin = TokenScore(1, {1: math.log(0.5), 2: math.log(0.5)})
    assert mean_entropy((sure, coin)) == pytest.approx(math.log(2) / 2)


def test_an_impossible_token_makes_no_nan() -> None:
    ours = (TokenScore(1, {1: 0.0, 2: -math.inf}),)
    theirs = (TokenScore(1, {1: math.log(0.5), 2: math.log(0.5)}),)
    assert mean_kl(ours, theirs) == pytest.approx(math.log(2))
    assert mean_entropy(ours) == 0.0
    assert math.isfinite(mean_kl(theirs, ours))


def test_scores_of_other_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="not of the same answer"):
        mean_kl((TokenScore(1, {1: 0.0}),), (TokenScore(2, {2: 0.0}),))
    with pytest.raises(ValueError, match="no position"):
        mean_entropy(())
