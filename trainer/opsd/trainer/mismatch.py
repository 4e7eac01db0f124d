"""Does the sampler run the weights that it should, and what if they are a step old?

Shape suffix: T sampled tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opsd.trainer.errors import SamplerMismatchError


@dataclass(frozen=True, slots=True)
class LogprobGap:
    """|log p(sampler) - log p(trainer)| over sampled tokens, both by the same weights, in nats.

    Sums, so that ranks can add theirs up; a token whose gap is not a number counts as infinite.
    """

    total: float = 0.0
    tokens: int = 0
    largest: float = 0.0

    @classmethod
    def of(cls, sampler_T: Tensor, trainer_T: Tensor) -> "LogprobGap":
        """Both in nats, of the same tokens, at temperature 1 over the whole vocabulary."""
        assert sampler_T.shape == trainer_T.shape, f"{sampler_T.shape} against {trainer_T.shape}"
        if sampler_T.numel() == 0:
            return cls()
        gap_T = (sampler_T.double() - trainer_T.double().to(sampler_T.device)).abs()
        gap_T = gap_T.nan_to_num(nan=float("inf"), posinf=float("inf"))
        return cls(float(gap_T.sum()), gap_T.numel(), float(gap_T.max()))

    def __add__(self, other: "LogprobGap") -> "LogprobGap":
        return LogprobGap(
            self.total + other.total,
            self.tokens + other.tokens,
            max(self.largest, other.largest),
        )

    @property
    def mean(self) -> float:
        return self.total / self.tokens if self.tokens else 0.0

    def check(self, bound: float, step: int) -> None:
        """Raises `SamplerMismatchError` when the mean exceeds the bound.

        Call it with the sum over all ranks, so that all stop for the same reason.
        """
        if not self.mean <= bound:
            raise SamplerMismatchError(step, self.mean, bound, self.largest)


def importance_weights_T(trainer_now_T: Tensor, sampler_T: Tensor, cap: float) -> Tensor:
    """min(p_now / p_sampler, cap) a token: truncated importance sampling (Ionides 2008).

    Corrects samples of weights that have moved on since; 1 where they have not. No gradient.

    Args:
        trainer_now_T: log-probabilities by the weights that are trained now, nats.
        sampler_T: by the weights that sampled, nats.
        cap: at least 1.
    """
    assert cap >= 1.0, f"cap {cap} is below 1"
    with torch.no_grad():
        ratio_T = (trainer_now_T.detach().float() - sampler_T.float()).exp()
        return ratio_T.clamp(max=cap)
