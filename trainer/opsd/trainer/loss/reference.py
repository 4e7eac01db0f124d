"""One chunk of rows in plain PyTorch: the definition that every other implementation must match.

Shape suffixes: R rows (token positions) of a chunk, V vocabulary, K telemetry columns,
N normaliser columns.
"""

import math

import torch
from torch import Tensor

from opsd.trainer.loss.config import Clip, Divergence, RowConfig
from opsd.trainer.loss.parallel import VocabShard, combined
from opsd.trainer.loss.rows import Rows, cap_slope, compute_dtype, soft_capped

name = "torch"


def clipped_kl_rows(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    sampled_ids_R: Tensor | None,
    config: RowConfig,
    shard: VocabShard | None = None,
    *,
    overwrite: bool = False,
) -> Rows:
    """Loss, telemetry and the closed-form gradient of every row.

    With s = log p_S and t = log p_T (both of logits / temperature), the entries and their
    derivatives along s are (arXiv 2601.18734, the objective; JSD's terms cancel to the last line):

        forward KL  e = p_T (t - s)                                de/ds = -p_T
        reverse KL  e = p_S (s - t)                                de/ds = e + p_S
        JSD         e = beta p_T (t - m) + (1 - beta) p_S (s - m)  de/ds = (1 - beta) p_S (s - m)

    where m is the log of the mixture. An entry's derivative is kept with weight 1 (not clipped),
    0 (`clamp` above c) or c / e (`scale` above c), giving g, and dL/dz = (g - p_S sum(g)) / T.

    `overwrite` is allowed, not used.
    """
    capped_RV, s_RV = _log_softmax(student_logits_RV, config, shard)
    _, t_RV = _log_softmax(teacher_logits_RV, config, shard)
    p_RV, q_RV = s_RV.exp(), t_RV.exp()
    entry_RV, slope_RV = entries(s_RV, t_RV, config)
    clipped_RV, slope_RV, over_RV = clip_entries(entry_RV, slope_RV, config)
    sums_RK = torch.stack(
        [
            clipped_RV.sum(-1),
            entry_RV.sum(-1),
            entry_RV.clamp(min=0).sum(-1),
            torch.where(over_RV, q_RV, 0.0).sum(-1),
            -_times(p_RV, s_RV).sum(-1),
            -_times(q_RV, t_RV).sum(-1),
            _at(s_RV, sampled_ids_R, shard),
            _at(t_RV, sampled_ids_R, shard),
            slope_RV.sum(-1),
        ],
        dim=-1,
    )
    if shard is not None:
        shard.sum_(sums_RK)
    grad_RV = (slope_RV - p_RV * sums_RK[:, -1:]) / config.temperature
    grad_RV = grad_RV * cap_slope(capped_RV, config.softcap)
    return Rows(sums_RK[:, 0], sums_RK[:, 1:-1], grad_RV.to(student_logits_RV.dtype))


def normalisers(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor | None,
    config: RowConfig,
) -> Tensor:
    """See `RowImplementation.normalisers`."""
    halves: list[Tensor] = []
    for logits_RV in (student_logits_RV, teacher_logits_RV):
        if logits_RV is None:
            halves.append(torch.zeros_like(halves[0]))
            continue
        x_RV = soft_capped(logits_RV.double(), config.softcap)
        top_R = x_RV.amax(-1)
        # A shard of the vocabulary may be masked as a whole: its sums are 0.
        x_RV = (x_RV - torch.where(top_R == -torch.inf, 0.0, top_R).unsqueeze(-1)) / (
            config.temperature
        )
        share_RV = x_RV.exp()
        halves.append(
            torch.stack([top_R, share_RV.sum(-1), _times(share_RV, x_RV).sum(-1)], dim=-1)
        )
    return torch.cat(halves, dim=-1)


def softmax_gradient_(
    student_logits_RV: Tensor,
    normalisers_RN: Tensor,
    coefficient_R: Tensor,
    config: RowConfig,
) -> None:
    """See `RowImplementation.softmax_gradient_`."""
    dtype = compute_dtype(student_logits_RV.dtype)
    x_RV = soft_capped(student_logits_RV.to(dtype), config.softcap)
    top_R1, total_R1 = normalisers_RN[:, 0:1].to(dtype), normalisers_RN[:, 1:2].to(dtype)
    p_RV = ((x_RV - top_R1) / config.temperature).exp() / total_R1
    scale_R1 = coefficient_R.to(dtype).unsqueeze(-1) / config.temperature
    grad_RV = p_RV * scale_R1 * cap_slope(x_RV, config.softcap)
    student_logits_RV.copy_(grad_RV)


def entries(s: Tensor, t: Tensor, config: RowConfig) -> tuple[Tensor, Tensor]:
    """The entries e and their derivative along s, from s = log p_S and t = log p_T (any shape)."""
    p, q = s.exp(), t.exp()
    if config.divergence is Divergence.FORWARD_KL:
        return _times(q, t - s), -q
    if config.divergence is Divergence.REVERSE_KL:
        entry = _times(p, s - t)
        return entry, entry + p
    beta = config.jsd_beta
    mixture = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    slope = (1 - beta) * _times(p, s - mixture)
    return beta * _times(q, t - mixture) + slope, slope


def clip_entries(entry: Tensor, slope: Tensor, config: RowConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Entries and derivatives after clipping, and which entries were over c."""
    over = entry > config.clip_value
    if config.clip is Clip.NONE:
        return entry, slope, over
    kept = 0.0 if config.clip is Clip.CLAMP else config.clip_value / entry
    # An infinite entry times 0 is no number; where it is clipped nothing of its slope is left.
    kept_slope = torch.where(entry == torch.inf, 0.0, slope) * kept
    return entry.clamp(max=config.clip_value), torch.where(over, kept_slope, slope), over


def _log_softmax(
    logits_RV: Tensor, config: RowConfig, shard: VocabShard | None
) -> tuple[Tensor, Tensor]:
    """The capped logits and their tempered log-probabilities, in the compute dtype."""
    capped_RV = soft_capped(logits_RV.to(compute_dtype(logits_RV.dtype)), config.softcap)
    if shard is None:
        return capped_RV, torch.log_softmax(capped_RV / config.temperature, dim=-1)
    own_RN = normalisers(logits_RV, None, config)
    top_R, total_R = combined(own_RN, config.temperature, shard)[:, :2].unbind(-1)
    log_z_R = top_R / config.temperature + total_R.log()
    s_RV = capped_RV.double() / config.temperature - log_z_R.unsqueeze(-1)
    return capped_RV, s_RV.to(capped_RV.dtype)


def _at(log_p_RV: Tensor, ids_R: Tensor | None, shard: VocabShard | None) -> Tensor:
    """Log-probability of the sampled token; 0 where it is not given or in another shard."""
    if ids_R is None:
        return torch.zeros_like(log_p_RV[:, 0])
    ids_R = ids_R.long() if shard is None else shard.local(ids_R.long())
    found_R = log_p_RV.gather(-1, ids_R.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return torch.where(ids_R >= 0, found_R, 0.0)


def _times(p: Tensor, log_ratio: Tensor) -> Tensor:
    # p log(...) tends to 0 with p, but 0 * inf is NaN: a vocabulary masked to -inf meets that.
    return torch.where(p == 0, 0.0, p * log_ratio)
