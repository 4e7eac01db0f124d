"""One chunk of rows in plain PyTorch: the definition that every other implementation must match.

Shape suffixes: R rows (token positions) of a chunk, V vocabulary, K telemetry columns.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from opsd.trainer.loss.config import Clip, Divergence, RowConfig

TELEMETRY_COLUMNS = (
    "divergence",
    "positive_divergence",
    "clipped_mass",
    "student_entropy",
    "teacher_entropy",
    "student_logprob",
    "teacher_logprob",
)


class Rows(NamedTuple):
    """What a row implementation returns; all in the compute dtype but the gradient."""

    loss_R: Tensor
    telemetry_RK: Tensor  # columns as in TELEMETRY_COLUMNS
    grad_student_logits_RV: Tensor  # of sum(loss_R), in the dtype of the student's logits


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """fp32 whatever comes in, except that fp64 stays fp64 (for gradient checks)."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def clipped_kl_rows(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    row_mask_R: Tensor | None,
    sampled_ids_R: Tensor | None,
    config: RowConfig,
) -> Rows:
    """Loss, telemetry and the closed-form gradient of every row.

    With s = log p_S and t = log p_T (both of logits / temperature), the entries and their
    derivatives along s are (arXiv 2601.18734, the objective; JSD's terms cancel to the last line):

        forward KL  e = p_T (t - s)                                de/ds = -p_T
        reverse KL  e = p_S (s - t)                                de/ds = e + p_S
        JSD         e = beta p_T (t - m) + (1 - beta) p_S (s - m)  de/ds = (1 - beta) p_S (s - m)

    where m is the log of the mixture. An entry's derivative is kept with weight 1 (not clipped),
    0 (`clamp` above c) or c / e (`scale` above c), giving g, and dL/dz = (g - p_S sum(g)) / T.

    Masked rows give zeros and are never a source of NaN.
    """
    dtype = compute_dtype(student_logits_RV.dtype)
    if row_mask_R is not None:
        keep_R1 = row_mask_R.unsqueeze(-1)
        student_logits_RV = student_logits_RV.masked_fill(~keep_R1, 0.0)
        teacher_logits_RV = teacher_logits_RV.masked_fill(~keep_R1, 0.0)
    s_RV = torch.log_softmax(student_logits_RV.to(dtype) / config.temperature, dim=-1)
    t_RV = torch.log_softmax(teacher_logits_RV.to(dtype) / config.temperature, dim=-1)
    p_RV, q_RV = s_RV.exp(), t_RV.exp()

    entry_RV, slope_RV = _entries(s_RV, t_RV, p_RV, q_RV, config)
    over_RV = entry_RV > config.clip_value
    if config.clip is Clip.NONE:
        clipped_RV = entry_RV
    else:
        clipped_RV = entry_RV.clamp(max=config.clip_value)
        kept_RV = 0.0 if config.clip is Clip.CLAMP else config.clip_value / entry_RV
        slope_RV = torch.where(over_RV, slope_RV * kept_RV, slope_RV)
    grad_RV = (slope_RV - p_RV * slope_RV.sum(-1, keepdim=True)) / config.temperature
    loss_R = clipped_RV.sum(-1)

    zeros_R = torch.zeros_like(loss_R)
    sampled_R1 = None if sampled_ids_R is None else sampled_ids_R.long().unsqueeze(-1)
    telemetry_RK = torch.stack(
        [
            entry_RV.sum(-1),
            entry_RV.clamp(min=0).sum(-1),
            torch.where(over_RV, q_RV, 0.0).sum(-1),
            -_times(p_RV, s_RV).sum(-1),
            -_times(q_RV, t_RV).sum(-1),
            zeros_R if sampled_R1 is None else s_RV.gather(-1, sampled_R1).squeeze(-1),
            zeros_R if sampled_R1 is None else t_RV.gather(-1, sampled_R1).squeeze(-1),
        ],
        dim=-1,
    )
    if row_mask_R is not None:
        loss_R = loss_R.masked_fill(~row_mask_R, 0.0)
        telemetry_RK = telemetry_RK.masked_fill(~keep_R1, 0.0)
        grad_RV = grad_RV.masked_fill(~keep_R1, 0.0)
    return Rows(loss_R, telemetry_RK, grad_RV.to(student_logits_RV.dtype))


def _times(p_RV: Tensor, log_ratio_RV: Tensor) -> Tensor:
    # p log(...) tends to 0 with p, but 0 * inf is NaN: a vocabulary masked to -inf meets that.
    return torch.where(p_RV > 0, p_RV * log_ratio_RV, 0.0)


def _entries(
    s_RV: Tensor, t_RV: Tensor, p_RV: Tensor, q_RV: Tensor, config: RowConfig
) -> tuple[Tensor, Tensor]:
    """The entries e and their derivative along s; p is the student's, q the teacher's."""
    if config.divergence is Divergence.FORWARD_KL:
        return _times(q_RV, t_RV - s_RV), -q_RV
    if config.divergence is Divergence.REVERSE_KL:
        entry_RV = _times(p_RV, s_RV - t_RV)
        return entry_RV, entry_RV + p_RV
    beta = config.jsd_beta
    mixture_RV = (beta * q_RV + (1 - beta) * p_RV).log()
    slope_RV = (1 - beta) * _times(p_RV, s_RV - mixture_RV)
    return beta * _times(q_RV, t_RV - mixture_RV) + slope_RV, slope_RV
