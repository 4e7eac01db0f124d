"""Rows whose divergence looks at a few entries: the sampled token, or the teacher's top k.

The student's whole distribution still normalises; its gradient is its softmax times one number a
row, but for the few entries that are named. Masked tokens never come here.

Shape suffixes: R rows, V vocabulary (of this shard), K named entries, B = K + 1 with the tail.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss.config import Clip, RowConfig
from opsd.trainer.loss.parallel import VocabShard, combined
from opsd.trainer.loss.reference import clip_entries, entries
from opsd.trainer.loss.rows import (
    RowImplementation,
    Rows,
    cap_slope,
    compute_dtype,
    soft_capped,
)


class Support(NamedTuple):
    """The teacher's greatest entries, as a sampler returns them."""

    ids_RK: Tensor  # distinct ids of a row
    logprobs_RK: Tensor  # tempered, over the whole vocabulary


def policy_gradient_rows(
    rows: RowImplementation,
    student_RV: Tensor,
    teacher_RV: Tensor,
    sampled_ids_R: Tensor,
    config: RowConfig,
    shard: VocabShard | None,
) -> Rows:
    """The weight w = log p_S - log p_T of the sampled token, kept in [-c, c], times grad log p_S.

    The loss is w: over samples of the student its mean is the reverse KL. Both divergence columns
    show what of it is there before clipping. `student_RV` becomes the gradient.
    """
    own_RN = rows.normalisers(student_RV, teacher_RV, config)
    norm_RN = combined(own_RN, config.temperature, shard)
    ids_R1 = sampled_ids_R.long().unsqueeze(-1)
    student_R1 = _picked(student_RV, ids_R1, config, shard)
    teacher_R1 = _picked(teacher_RV, ids_R1, config, shard)
    s_R = _log_prob(student_R1, norm_RN[:, :3], config).squeeze(-1)
    t_R = _log_prob(teacher_R1, norm_RN[:, 3:], config).squeeze(-1)
    entry_R = s_R - t_R
    bound = config.clip_value
    weight_R = entry_R if config.clip is Clip.NONE else entry_R.clamp(-bound, bound)
    rows.softmax_gradient_(student_RV, norm_RN, -weight_R, config)
    own_R1 = weight_R.unsqueeze(-1) * -torch.expm1(s_R).unsqueeze(-1)
    _patch_(student_RV, ids_R1, own_R1, student_R1, config, shard)
    telemetry_RK = torch.stack(
        [
            entry_R,
            entry_R.clamp(min=0),
            torch.where(entry_R.abs() > bound, t_R.exp(), 0.0),
            _entropy(norm_RN[:, :3]),
            _entropy(norm_RN[:, 3:]),
            s_R,
            t_R,
        ],
        dim=-1,
    )
    return _rows(weight_R, telemetry_RK, student_RV)


def top_k_rows(
    rows: RowImplementation,
    student_RV: Tensor,
    teacher_RV: Tensor | None,
    support: Support | None,
    sampled_ids_R: Tensor | None,
    config: RowConfig,
    shard: VocabShard | None,
) -> Rows:
    """The divergence over the teacher's k greatest entries and one more for all the others.

    The teacher comes as logits (then k is `config.top_k`) or as a `support`. Its entropy in the
    telemetry is that of the k + 1 entries; its log-probability of a sampled token outside the
    support is 0 for "not known" where only a support was given. `student_RV` becomes the gradient.
    """
    sampled_R1 = None if sampled_ids_R is None else sampled_ids_R.long().unsqueeze(-1)
    teacher_at_R = None
    if teacher_RV is not None:
        teacher_RN = combined(rows.normalisers(teacher_RV, None, config), config.temperature, shard)
        if sampled_R1 is not None:
            picked_R1 = _picked(teacher_RV, sampled_R1, config, shard)
            teacher_at_R = _log_prob(picked_R1, teacher_RN[:, :3], config).squeeze(-1)
        support, tail_RN = _own_support(rows, teacher_RV, teacher_RN, config, shard)
        tail_R = _log_prob_of_part(tail_RN[:, :3], teacher_RN[:, :3], config)
    else:
        assert support is not None
        tail_R = torch.log1p(-support.logprobs_RK.double().exp().sum(-1).clamp(max=1.0))
    ids_RK = support.ids_RK.long()
    t_RB = torch.cat([support.logprobs_RK.double(), tail_R.unsqueeze(-1)], dim=-1)

    named_RK = _picked(student_RV, ids_RK, config, shard)
    sampled_logit_R1 = (
        None if sampled_R1 is None else _picked(student_RV, sampled_R1, config, shard)
    )
    _blank_(student_RV, ids_RK, shard)
    rest_RN = combined(rows.normalisers(student_RV, None, config), config.temperature, shard)
    norm_RN = _with(rest_RN, named_RK, config)
    s_RB = torch.cat(
        [
            _log_prob(named_RK, norm_RN[:, :3], config),
            _log_prob_of_part(rest_RN[:, :3], norm_RN[:, :3], config).unsqueeze(-1),
        ],
        dim=-1,
    )
    entry_RB, slope_RB = entries(s_RB, t_RB, config)
    clipped_RB, slope_RB, over_RB = clip_entries(entry_RB, slope_RB, config)
    total_R = slope_RB.sum(-1)
    p_RB = s_RB.exp()
    tail_p_R = p_RB[:, -1]
    # Over the tail's own sum: its share of the whole may be too small for a quotient.
    coefficient_R = slope_RB[:, -1] - tail_p_R * total_R
    tail_RN = torch.where(rest_RN[:, 1:2] == 0, norm_RN, rest_RN)
    rows.softmax_gradient_(student_RV, tail_RN, coefficient_R, config)
    own_RK = slope_RB[:, :-1] - p_RB[:, :-1] * total_R.unsqueeze(-1)
    _patch_(student_RV, ids_RK, own_RK, named_RK, config, shard)

    zeros_R = torch.zeros_like(total_R)
    student_at_R = zeros_R
    if sampled_R1 is not None and sampled_logit_R1 is not None:
        student_at_R = _log_prob(sampled_logit_R1, norm_RN[:, :3], config).squeeze(-1)
        if teacher_at_R is None:
            same_RK = ids_RK == sampled_R1
            teacher_at_R = torch.where(same_RK, support.logprobs_RK.double(), 0.0).sum(-1)
    q_RB = t_RB.exp()
    telemetry_RK = torch.stack(
        [
            entry_RB.sum(-1),
            entry_RB.clamp(min=0).sum(-1),
            torch.where(over_RB, q_RB, 0.0).sum(-1),
            _entropy(norm_RN[:, :3]),
            -torch.where(q_RB > 0, q_RB * t_RB, 0.0).sum(-1),
            student_at_R,
            zeros_R if teacher_at_R is None else teacher_at_R,
        ],
        dim=-1,
    )
    return _rows(clipped_RB.sum(-1), telemetry_RK, student_RV)


def check_support(ids_TK: Tensor, logprobs_TK: Tensor, num_vocab: int) -> None:
    """Raises for ids outside the vocabulary or twice in a row, and for no log-probabilities."""
    if ids_TK.numel() == 0:
        return
    low, high = (int(bound) for bound in ids_TK.aminmax())
    if low < 0 or high >= num_vocab:
        raise LossArgumentError(
            f"teacher_topk_ids in [{low}, {high}]: must lie in [0, {num_vocab})"
        )
    ordered = ids_TK.sort(-1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(-1)
    if bool(twice.any()):
        raise LossArgumentError(
            f"teacher_topk_ids[{int(twice.nonzero()[0])}]: an id is there twice; ids of a token "
            "must be distinct"
        )
    # A little above 0 is what rounding makes of a certain token.
    wrong = ~(logprobs_TK < 1e-3).all(-1) | (logprobs_TK.double().exp().sum(-1) > 1.01)
    if bool(wrong.any()):
        raise LossArgumentError(
            f"teacher_topk_logprobs[{int(wrong.nonzero()[0])}]: must be log-probabilities (at most "
            "0, their exponentials adding up to at most 1)"
        )


def _own_support(
    rows: RowImplementation,
    teacher_RV: Tensor,
    teacher_RN: Tensor,
    config: RowConfig,
    shard: VocabShard | None,
) -> tuple[Support, Tensor]:
    """The k greatest of the whole vocabulary, and the normalisers of the others."""
    num_vocab = teacher_RV.shape[1] if shard is None else shard.num_vocab
    k = min(config.top_k, num_vocab)
    own = teacher_RV.topk(min(k, teacher_RV.shape[1]), dim=-1)
    logits_RK, ids_RK = own.values, own.indices
    if shard is not None:
        wide = (0, k - logits_RK.shape[1])  # a shard may have fewer than k ids
        logits_RK = torch.nn.functional.pad(logits_RK.double(), wide, value=-torch.inf)
        ids_RK = torch.nn.functional.pad(ids_RK + shard.start, wide, value=-1)
        logits_RC, ids_RC = shard.gather(logits_RK), shard.gather(ids_RK)
        # Ids break ties, so that every rank chooses the same ones.
        order = torch.argsort(ids_RC, dim=-1, stable=True)
        logits_RC, ids_RC = logits_RC.gather(-1, order), ids_RC.gather(-1, order)
        best = torch.argsort(logits_RC, dim=-1, descending=True, stable=True)[:, :k]
        logits_RK, ids_RK = logits_RC.gather(-1, best), ids_RC.gather(-1, best)
    capped_RK = soft_capped(logits_RK.double(), config.softcap)
    others_RV = teacher_RV.clone()
    _blank_(others_RV, ids_RK, shard)
    tail_RN = combined(rows.normalisers(others_RV, None, config), config.temperature, shard)
    return Support(ids_RK, _log_prob(capped_RK, teacher_RN[:, :3], config)), tail_RN


def _picked(
    logits_RV: Tensor, ids_RK: Tensor, config: RowConfig, shard: VocabShard | None
) -> Tensor:
    """The capped logits of these ids in fp64, wherever in the vocabulary they are: [R, K]."""
    ids_RK = ids_RK if shard is None else shard.local(ids_RK)
    found_RK = logits_RV.gather(-1, ids_RK.clamp(min=0)).double()
    found_RK = soft_capped(found_RK, config.softcap).masked_fill(ids_RK < 0, -torch.inf)
    if shard is None:
        return found_RK
    # NaN on one rank is NaN on all of them; what a maximum makes of it differs between backends.
    wrong_RK = shard.sum_(found_RK.isnan().double())
    highest_RK = shard.max_(found_RK.nan_to_num(nan=-torch.inf).contiguous())
    return torch.where(wrong_RK > 0, torch.nan, highest_RK)


def _blank_(logits_RV: Tensor, ids_RK: Tensor, shard: VocabShard | None) -> None:
    """Takes these ids out of the distribution."""
    _put_(logits_RV, ids_RK, torch.full_like(ids_RK, -torch.inf, dtype=logits_RV.dtype), shard)


def _put_(target_RV: Tensor, ids_RK: Tensor, values_RK: Tensor, shard: VocabShard | None) -> None:
    """target[r, ids[r, k]] = values[r, k] for the ids of this shard."""
    ids_RK = ids_RK if shard is None else shard.local(ids_RK)
    row_RK = torch.arange(len(ids_RK), device=ids_RK.device).unsqueeze(-1).expand_as(ids_RK)
    here_RK = ids_RK >= 0
    target_RV[row_RK[here_RK], ids_RK[here_RK]] = values_RK[here_RK].to(target_RV.dtype)


def _patch_(
    grad_RV: Tensor,
    ids_RK: Tensor,
    own_RK: Tensor,
    capped_RK: Tensor,
    config: RowConfig,
    shard: VocabShard | None,
) -> None:
    """Writes the gradient of the named entries, given along log p."""
    values_RK = own_RK / config.temperature * cap_slope(capped_RK, config.softcap)
    _put_(grad_RV, ids_RK, values_RK, shard)


def _log_prob(capped_RK: Tensor, norm_R3: Tensor, config: RowConfig) -> Tensor:
    top_R1, total_R1 = norm_R3[:, 0:1], norm_R3[:, 1:2]
    return (capped_RK - top_R1) / config.temperature - total_R1.log()


def _log_prob_of_part(part_R3: Tensor, norm_R3: Tensor, config: RowConfig) -> Tensor:
    """Log of the mass of the entries that `part` normalises; -inf where there are none."""
    shift_R = (part_R3[:, 0] - norm_R3[:, 0]) / config.temperature
    found_R = shift_R + part_R3[:, 1].log() - norm_R3[:, 1].log()
    return torch.where(part_R3[:, 1] == 0, -torch.inf, found_R)


def _with(rest_RN: Tensor, named_RK: Tensor, config: RowConfig) -> Tensor:
    """The normalisers of the named entries and the rest together (the student's columns)."""
    top_R = torch.maximum(rest_RN[:, 0], named_RK.amax(-1))
    shift_R = torch.where(rest_RN[:, 1] == 0, 0.0, (rest_RN[:, 0] - top_R) / config.temperature)
    x_RK = (named_RK - top_R.unsqueeze(-1)) / config.temperature
    share_RK = x_RK.exp()
    total_R = rest_RN[:, 1] * shift_R.exp() + share_RK.sum(-1)
    weighted_R = (rest_RN[:, 2] + shift_R * rest_RN[:, 1]) * shift_R.exp()
    weighted_R = weighted_R + torch.where(share_RK > 0, share_RK * x_RK, 0.0).sum(-1)
    return torch.cat([torch.stack([top_R, total_R, weighted_R], dim=-1), rest_RN[:, 3:]], dim=-1)


def _entropy(norm_R3: Tensor) -> Tensor:
    return norm_R3[:, 1].log() - norm_R3[:, 2] / norm_R3[:, 1]


def _rows(loss_R: Tensor, telemetry_RK: Tensor, grad_RV: Tensor) -> Rows:
    dtype = compute_dtype(grad_RV.dtype)
    return Rows(loss_R.to(dtype), telemetry_RK.to(dtype), grad_RV)
