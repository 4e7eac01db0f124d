"""What the implementations of a chunk of rows have in common.

Shape suffixes: R rows (token positions) of a chunk, V vocabulary (of one shard, where it is
spread over ranks), K telemetry columns, N normaliser columns.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from opsd.trainer.loss.config import RowConfig
from opsd.trainer.loss.parallel import VocabShard

TELEMETRY_COLUMNS = (
    "divergence",
    "positive_divergence",
    "clipped_mass",
    "student_entropy",
    "teacher_entropy",
    "student_logprob",
    "teacher_logprob",
)
NORMALISER_COLUMNS = 6
"""The student's top, sum and weighted, then the teacher's: the greatest logit, the sum of
exp((logit - top) / T), and the same sum with each term times (logit - top) / T. In fp64."""


class Rows(NamedTuple):
    """What a row implementation returns; all in the compute dtype but the gradient."""

    loss_R: Tensor
    telemetry_RK: Tensor  # columns as in TELEMETRY_COLUMNS
    grad_student_logits_RV: Tensor  # of sum(loss_R), in the logits' dtype


class RowImplementation(Protocol):
    """One way to compute rows: plain PyTorch, or the compiled kernels.

    `overwrite` allows the gradient to take the place of the student's logits. A row that is no
    distribution (NaN, +inf, nothing above -inf) gives NaN.
    """

    name: str

    def clipped_kl_rows(
        self,
        student_logits_RV: Tensor,
        teacher_logits_RV: Tensor,
        sampled_ids_R: Tensor | None,
        config: RowConfig,
        shard: VocabShard | None = None,
        *,
        overwrite: bool = False,
    ) -> Rows:
        """The divergence over the whole vocabulary."""
        ...

    def normalisers(
        self,
        student_logits_RV: Tensor,
        teacher_logits_RV: Tensor | None,
        config: RowConfig,
    ) -> Tensor:
        """[R, N], of this shard alone; the teacher's are 0 without teacher."""
        ...

    def softmax_gradient_(
        self,
        student_logits_RV: Tensor,
        normalisers_RN: Tensor,
        coefficient_R: Tensor,
        config: RowConfig,
    ) -> None:
        """Overwrites the logits by coefficient * p_S / T."""
        ...


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 whatever comes in, except that fp64 stays fp64 (for gradient checks)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def soft_capped(logits: Tensor, softcap: float) -> Tensor:
    """cap * tanh(logits / cap); -inf, a masked entry, stays so. `softcap` 0 is none."""
    if softcap == 0:
        return logits
    return torch.where(logits == -torch.inf, logits, softcap * torch.tanh(logits / softcap))


def cap_slope(capped: Tensor, softcap: float) -> Tensor:
    """The soft cap's derivative, from its value."""
    if softcap == 0:
        return torch.ones_like(capped)
    return (1 - (capped / softcap) ** 2).clamp(min=0)
