"""Attention over packed sequences: one row, no padding, nothing passes from one to the next.

Registered with transformers under `NAME`. Given `sequence_lengths`, every sequence attends to
itself alone; without them (sampling) it is transformers' own SDPA.

Shape suffixes: H query heads, G key heads, L positions of the row, K head size, S sequences.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.errors import ModelError

NAME = "opsd_packed"


def register() -> None:
    """Makes `NAME` known to transformers."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def packed_arguments(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What a decoder takes besides ids [1, L] that sequences of these lengths are packed in."""
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    return {
        "position_ids": positions.unsqueeze(0),
        # A mask of four dimensions is handed to the attention as it is: none of L × L is made. It
        # is of integers, so that nothing can take it for a mask.
        "attention_mask": torch.zeros((1, 1, 1, 1), dtype=torch.int8, device=device),
        "sequence_lengths": tuple(lengths),
    }


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    sequence_lengths: tuple[int, ...] | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it.

    Args:
        module: unused but by SDPA.
        query: [1, H, L, K] where packed.
        key: [1, G, L, K], H a multiple of G.
        value: as key.
        attention_mask: of `packed_arguments` where packed.
        dropout: 0 where packed: the base never drops.
        scaling: of the products; None: 1 / sqrt(K).
        sliding_window: positions that a query sees, itself included; None: all before it.
        sequence_lengths: of the packed sequences, summing up to L.

    Returns:
        [1, L, H, K], and no weights.
    """
    if sequence_lengths is None:
        if attention_mask is not None and attention_mask.dtype == torch.int8:
            raise ModelError(
                f"{type(module).__name__} does not hand its arguments to the attention"
            )
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **rest,
        )
    if unknown := [name for name in ("softcap", "s_aux") if rest.get(name) is not None]:
        raise ModelError(f"{type(module).__name__}: attention with {unknown[0]} cannot be packed")
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        return _flash(query, key, value, scaling, sliding_window, sequence_lengths), None
    parts: list[Tensor] = []
    start = 0
    # A block mask over the row costs its square, and padding the square of the longest for each: on
    # a CPU this loop is twice as fast as padding and three times as fast as a mask.
    for length in sequence_lengths:
        query_part, key_part, value_part = (
            tensor.narrow(2, start, length) for tensor in (query, key, value)
        )
        mask = None
        if sliding_window is not None and length > sliding_window:
            mask = _window_mask(length, sliding_window, query.device)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query_part,
                key_part,
                value_part,
                attn_mask=mask,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
        start += length
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    sliding_window: int | None,
    lengths: tuple[int, ...],
) -> Tensor:
    """torch's own flash attention over sequences of different lengths, in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    ends_S = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    ends_S = ends_S.to(query.device, non_blocking=True)
    longest = max(lengths)
    # A window is so many positions before the query's own.
    before = -1 if sliding_window is None else sliding_window - 1
    query_LHK, key_LGK, value_LGK = (
        tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value)
    )
    out = varlen_attn(
        query_LHK,
        key_LGK,
        value_LGK,
        ends_S,
        ends_S,
        longest,
        longest,
        scale=scaling,
        window_size=(before, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, Tensor)
    return out.unsqueeze(0)


def _window_mask(length: int, window: int, device: torch.device) -> Tensor:
    place = torch.arange(length, device=device)
    back = place.unsqueeze(1) - place.unsqueeze(0)
    return (back >= 0) & (back < window)
