"""The gap is what it says, and the weights correct what they should."""

import math
import pickle

import pytest
import torch

from opsd.trainer.errors import SamplerMismatchError
from opsd.trainer.mismatch import LogprobGap, importance_weights_T


def test_the_gap_is_the_mean_absolute_difference() -> None:
    gap = LogprobGap.of(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.0]))
    assert (gap.mean, gap.tokens, gap.largest) == (0.5, 3, 1.0)
    gap.check(0.5, step=3)
    with pytest.raises(SamplerMismatchError) as caught:
        gap.check(0.49, step=3)
    for part in ("step 3", "0.5 nats", "largest by 1", "max_logprob_gap = 0.49", "stale"):
        assert part in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_ranks_add_up_to_the_whole() -> None:
    sampler_T, trainer_T = torch.randn(10), torch.randn(10)
    parts = LogprobGap.of(sampler_T[:3], trainer_T[:3]) + LogprobGap.of(
        sampler_T[3:], trainer_T[3:]
    )
    whole = LogprobGap.of(sampler_T, trainer_T)
    assert parts.mean == pytest.approx(whole.mean)
    assert (parts.tokens, parts.largest) == (whole.tokens, whole.largest)


def test_no_tokens_make_no_gap() -> None:
    LogprobGap.of(torch.zeros(0), torch.zeros(0)).check(1e-9, step=0)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_what_is_not_a_number_never_passes(bad: float) -> None:
    gap = LogprobGap.of(torch.tensor([-1.0, bad]), torch.tensor([-1.0, -1.0]))
    with pytest.raises(SamplerMismatchError):
        gap.check(1e9, step=0)


def test_weights_are_the_ratio_up_to_the_cap() -> None:
    now_T = torch.tensor([-1.0, -1.0, -1.0], requires_grad=True)
    sampler_T = torch.tensor([-1.0, -1.0 + math.log(2), -9.0])
    weights_T = importance_weights_T(now_T, sampler_T, cap=2.0)
    assert weights_T.tolist() == pytest.approx([1.0, 0.5, 2.0])
    assert not weights_T.requires_grad
