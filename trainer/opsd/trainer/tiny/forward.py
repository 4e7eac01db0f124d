"""The model's forward pass as pretraining needs it: same weights, fewer passes over memory.

On one CPU core transformers' own pass over such a small model spends half its time reading and
writing activations. Here sequences of similar length share a padded block, all blocks are one flat
tensor outside attention, projections of the same input are one product, and normalisation and
rotation have their own short backward. Takes 20-25 % off a step.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

# Shape suffixes: P positions of all blocks, B sequences of a block, T positions of a sequence,
# H query heads, K key heads (one), Q = H + K, E head dimension, D hidden size, N loss positions.


class Layout(NamedTuple):
    """A batch laid out flat: block after block, each of sequences padded on the right."""

    ids_P: Tensor
    targets_P: Tensor
    """The next token where it counts for the loss, else -100."""
    block_shapes: list[tuple[int, int]]
    """(B, T) of each block."""


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight over the last dimension; the weight may have leading head dimensions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vecdot(x, x).div_(x.shape[-1])
        scale = torch.rsqrt(mean_square.add_(eps)).unsqueeze(-1)
        unit = x * scale
        ctx.save_for_backward(unit, weight, scale)
        return unit * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        unit, weight, scale = ctx.saved_tensors
        weight_grad = torch.linalg.vecdot(grad, unit, dim=0)
        unit_grad = grad * weight
        along = torch.linalg.vecdot(unit_grad, unit).div_(unit.shape[-1]).unsqueeze(-1)
        return unit_grad.addcmul_(unit, along, value=-1).mul_(scale), weight_grad, None


class _Rotate(torch.autograd.Function):
    """Rotary position embedding; its backward rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(grad, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    out = torch.empty_like(x)
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half:]).addcmul_(first, sin)
    return out


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed: Tensor = _RmsNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


def _rotation(config: Qwen3Config, layout: Layout) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, each of shape (P, 1, E / 2)."""
    exponents = torch.arange(0, config.head_dim, 2) / config.head_dim
    frequencies = config.rope_parameters["rope_theta"] ** -exponents
    positions_P = torch.cat([torch.arange(t).repeat(b) for b, t in layout.block_shapes])
    angles = torch.outer(positions_P, frequencies).unsqueeze(1)
    return angles.cos(), angles.sin()


def _attention(layer: Any, hidden_PD: Tensor, layout: Layout, rotation: Any, eps: float) -> Tensor:
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight = torch.cat([projection.weight for projection in projections])
    head_dim = attention.head_dim
    qkv = F.linear(hidden_PD, weight).view(len(hidden_PD), -1, head_dim)
    num_heads = qkv.shape[1] - 2
    qk_PQE, v_PKE = torch.split(qkv, [num_heads + 1, 1], dim=1)
    norms = [attention.q_norm.weight.expand(num_heads, -1), attention.k_norm.weight.unsqueeze(0)]
    normed_PQE = _normed(qk_PQE, torch.cat(norms), eps)
    qk_PQE = _Rotate.apply(normed_PQE, *rotation)  # type: ignore[no-untyped-call]
    sizes = [b * t for b, t in layout.block_shapes]
    outputs = []
    blocks = zip(
        layout.block_shapes, torch.split(qk_PQE, sizes), torch.split(v_PKE, sizes), strict=True
    )
    for shape, qk, v in blocks:
        qk_BQTE = qk.view(*shape, num_heads + 1, head_dim).transpose(1, 2)
        q_BHTE, k_BKTE = torch.split(qk_BQTE, [num_heads, 1], dim=1)
        v_BKTE = v.view(*shape, 1, head_dim).transpose(1, 2)
        # Padding is on the right and carries no loss, so the causal mask alone is right.
        mixed_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BKTE.expand(-1, num_heads, -1, -1),
            v_BKTE.expand(-1, num_heads, -1, -1),
            is_causal=True,
        )
        outputs.append(mixed_BHTE.transpose(1, 2).flatten(2).flatten(0, 1))
    return F.linear(torch.cat(outputs), attention.o_proj.weight)


def hidden_states(model: Qwen3ForCausalLM, layout: Layout) -> Tensor:
    """Return what ``model.model`` returns, flat: shape (P, D), differentiable once.

    Raises:
        ValueError: the model has more than one key head, which this pass does not know.
    """
    config = model.config
    if config.num_key_value_heads != 1:
        raise ValueError(f"one key-value head expected, got {config.num_key_value_heads}")
    eps = config.rms_norm_eps
    rotation = _rotation(config, layout)
    x_PD = F.embedding(layout.ids_P, model.model.embed_tokens.weight)
    for layer in model.model.layers:
        normed_PD = _normed(x_PD, layer.input_layernorm.weight, eps)
        x_PD = x_PD + _attention(layer, normed_PD, layout, rotation, eps)
        normed_PD = _normed(x_PD, layer.post_attention_layernorm.weight, eps)
        weight = torch.cat([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
        gate, up = F.linear(normed_PD, weight).chunk(2, dim=-1)
        x_PD = x_PD + F.linear(F.silu(gate) * up, layer.mlp.down_proj.weight)
    return _normed(x_PD, model.model.norm.weight, eps)
