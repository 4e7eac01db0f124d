"""The loss as two operators of torch: from hidden states, and from logits.

Each makes loss, telemetry and gradient in its forward call, a chunk of rows at a time, so that
nothing of the size tokens × vocabulary outlives a chunk; its backward is a product. To
torch.compile they are opaque, so they work inside a full graph.

Shape suffixes: T tokens, R rows of one chunk, V vocabulary (of this shard), D hidden size.
"""

from typing import Any

import torch
from torch import Tensor

from opsd.trainer.loss.chunks import Chunks, Given, empty_outputs
from opsd.trainer.loss.heads import Head
from opsd.trainer.loss.rows import compute_dtype


@torch.library.custom_op("opsd::clipped_kl_from_hidden", mutates_args=())
def from_hidden(
    student_hidden: Tensor,
    teacher_hidden: Tensor | None,
    lm_head_weight: Tensor,
    lm_head_bias: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    sampled_ids: Tensor | None,
    topk_ids: Tensor | None,
    topk_logprobs: Tensor | None,
    divergence: str,
    jsd_beta: float,
    clip: str,
    clip_value: float,
    temperature: float,
    softcap: float,
    top_k: int,
    chunk_size: int,
    implementation: str,
    shard: list[int],
    group_name: str,
    needs_hidden: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scalar loss, [T] losses, [T, K] telemetry; gradients of hidden states, lm_head, its bias.

    A gradient that is not needed is empty. `shard` is (start, num_vocab, largest) of a
    `VocabShard`, or nothing.
    """
    given = Given(token_mask, token_weight, sampled_ids, topk_ids, topk_logprobs)
    chunks = Chunks(
        student_hidden,
        lm_head_weight.shape[0],
        lm_head_weight.dtype,
        given,
        (divergence, jsd_beta, clip, clip_value, temperature, softcap, top_k),
        (implementation, chunk_size, shard, group_name),
        (needs_hidden, needs_weight, needs_bias),
    )
    head = Head(lm_head_weight, lm_head_bias)
    # Chunks add up in fp32: a bf16 sum over many chunks would lose the small ones.
    sums = lm_head_weight.new_zeros(0, dtype=compute_dtype(lm_head_weight.dtype))
    grad_hidden_TD = student_hidden.new_zeros(
        student_hidden.shape if needs_hidden else (0,), dtype=_kept_dtype(student_hidden.dtype)
    )
    grad_weight_VD = sums.new_zeros(lm_head_weight.shape if needs_weight else (0,))
    grad_bias_V = sums.new_zeros(lm_head_weight.shape[0] if needs_bias else 0)
    for index in chunks:
        student_RD = student_hidden[index]
        teacher_RD = None if teacher_hidden is None else teacher_hidden[index]
        grad_RV, weight_R1 = chunks.rows(index, *head.logits(student_RD, teacher_RD))
        if needs_hidden:
            grad_RD = head.hidden_gradient(grad_RV) * weight_R1
            grad_hidden_TD[index] = grad_RD.to(grad_hidden_TD.dtype)
        if needs_weight:
            weighted_RD = student_RD.to(weight_R1.dtype) * weight_R1
            grad_weight_VD += grad_RV.to(weight_R1.dtype).T @ weighted_RD
        if needs_bias:
            grad_bias_V += (grad_RV * weight_R1).sum(0)
    head.close()
    if chunks.shard is not None and needs_hidden:
        chunks.shard.sum_(grad_hidden_TD)
    dtype = _kept_dtype(lm_head_weight.dtype)
    gradients = (grad_hidden_TD, grad_weight_VD.to(dtype), grad_bias_V.to(dtype))
    loss = chunks.loss(
        student_hidden=student_hidden,
        teacher_hidden=teacher_hidden,
        lm_head_weight=lm_head_weight,
        lm_head_bias=lm_head_bias,
    )
    return (loss, chunks.loss_T, chunks.telemetry_TK, *gradients)


@from_hidden.register_fake
def _(
    student_hidden: Tensor,
    teacher_hidden: Tensor | None,
    lm_head_weight: Tensor,
    lm_head_bias: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    needs_hidden, needs_weight, needs_bias = rest[-3:]
    loss_T, telemetry_TK = empty_outputs(student_hidden)
    hidden = student_hidden.new_empty(0, dtype=_kept_dtype(student_hidden.dtype))
    head = lm_head_weight.new_empty(0, dtype=_kept_dtype(lm_head_weight.dtype))
    return (
        loss_T.new_empty(()),
        loss_T,
        telemetry_TK,
        hidden.new_empty(student_hidden.shape if needs_hidden else (0,)),
        head.new_empty(lm_head_weight.shape if needs_weight else (0,)),
        head.new_empty((lm_head_weight.shape[0] if needs_bias else 0,)),
    )


def _keep_hidden(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[3:])
    ctx.needs = inputs[-3:]
    ctx.dtypes = (inputs[0].dtype, inputs[2].dtype, inputs[2].dtype)


def _from_hidden_backward(
    ctx: Any, grad_loss: Tensor, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    hidden, weight, bias = (
        _scaled(saved, grad_loss, dtype) if needed else None
        for saved, needed, dtype in zip(ctx.saved_tensors, ctx.needs, ctx.dtypes, strict=True)
    )
    return (hidden, None, weight, bias, *[None] * 19)


from_hidden.register_autograd(_from_hidden_backward, setup_context=_keep_hidden)


@torch.library.custom_op("opsd::clipped_kl_from_logits", mutates_args=())
def from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    token_mask: Tensor | None,
    token_weight: Tensor | None,
    sampled_ids: Tensor | None,
    topk_ids: Tensor | None,
    topk_logprobs: Tensor | None,
    divergence: str,
    jsd_beta: float,
    clip: str,
    clip_value: float,
    temperature: float,
    softcap: float,
    top_k: int,
    chunk_size: int,
    implementation: str,
    shard: list[int],
    group_name: str,
    needs_logits: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scalar loss, [T] losses, [T, K] telemetry, gradient of the student's logits (or empty)."""
    given = Given(token_mask, token_weight, sampled_ids, topk_ids, topk_logprobs)
    chunks = Chunks(
        student_logits,
        student_logits.shape[1],
        student_logits.dtype,
        given,
        (divergence, jsd_beta, clip, clip_value, temperature, softcap, top_k),
        (implementation, chunk_size, shard, group_name),
        (needs_logits,),
    )
    grad_TV = student_logits.new_zeros(
        student_logits.shape if needs_logits else (0,), dtype=_kept_dtype(student_logits.dtype)
    )
    for index in chunks:
        # A copy that the gradient may overwrite; fp16 has too little range for it.
        dtype = _kept_dtype(student_logits.dtype)
        student_RV = student_logits[index].to(
            dtype, copy=True, memory_format=torch.contiguous_format
        )
        teacher_RV = None if teacher_logits is None else teacher_logits[index].to(dtype)
        grad_RV, weight_R1 = chunks.rows(index, student_RV, teacher_RV)
        if needs_logits:
            grad_TV[index] = (grad_RV * weight_R1).to(grad_TV.dtype)
    loss = chunks.loss(student_logits=student_logits, teacher_logits=teacher_logits)
    return loss, chunks.loss_T, chunks.telemetry_TK, grad_TV


@from_logits.register_fake
def _(student_logits: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    loss_T, telemetry_TK = empty_outputs(student_logits)
    grad_TV = student_logits.new_empty(
        student_logits.shape if rest[-1] else (0,), dtype=_kept_dtype(student_logits.dtype)
    )
    return loss_T.new_empty(()), loss_T, telemetry_TK, grad_TV


def _keep_logits(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[3])
    ctx.needs, ctx.dtype = inputs[-1], inputs[0].dtype


def _from_logits_backward(
    ctx: Any, grad_loss: Tensor, *unused: Tensor | None
) -> tuple[Tensor | None, ...]:
    (saved,) = ctx.saved_tensors
    return (_scaled(saved, grad_loss, ctx.dtype) if ctx.needs else None, *[None] * 18)


from_logits.register_autograd(_from_logits_backward, setup_context=_keep_logits)


def _kept_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a gradient until backward: fp16 would lose it before a loss scaler comes to its help."""
    return torch.float32 if dtype == torch.float16 else dtype


def _scaled(saved: Tensor, grad_loss: Tensor, dtype: torch.dtype) -> Tensor:
    wide = compute_dtype(dtype)
    return (saved.to(wide) * grad_loss.to(wide)).to(dtype)
