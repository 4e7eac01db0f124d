"""The output head that student and teacher share, whole or spread over the ranks, and its loss.

Spread, every rank computes its rows of the vocabulary for the tokens of all ranks: hidden states
travel, lm_head and logits do not.

Shape suffixes: T tokens of this rank, N tokens of all ranks, W ranks, D hidden size, V vocabulary.
"""

from dataclasses import fields
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opsd.trainer.loss import ClippedKL, VocabShard, clipped_kl
from opsd.trainer.loss.api import TokenTelemetry
from opsd.trainer.sharding import ShardedBase


class OutputHead:
    """lm_head of one network.

    Args:
        causal: the model.
        sharded: how it is spread; None: it is not.
    """

    def __init__(self, causal: Any, sharded: ShardedBase | None) -> None:
        self._causal = causal
        self._sharded = sharded
        self._shard: VocabShard | None = None

    @property
    def weight_VD(self) -> Tensor:
        """The whole weight.

        Raises:
            AssertionError: it is spread now; see `StudentTeacher.whole_head`.
        """
        assert not self._is_spread, "lm_head is spread over the ranks: gather it first"
        weight: Tensor = self._causal.get_output_embeddings().weight
        return weight.detach()

    def clipped_kl(
        self, student_TD: Tensor, teacher_TD: Tensor | None, **settings: Any
    ) -> ClippedKL:
        """`opsd.trainer.loss.clipped_kl` over this head; every rank asks for its own tokens.

        Spread, this is a collective call with the same settings everywhere, each rank having at
        least one token; `loss` is then that of all ranks' tokens, its gradient and the telemetry
        are those of this rank's.
        """
        if not self._is_spread:
            return clipped_kl(student_TD, teacher_TD, self.weight_VD, **settings)
        assert self._sharded is not None
        rows = self._sharded.head_rows()
        if self._shard is None:
            self._shard = VocabShard.over(None, rows.shape[0], rows.device)
        tokens = _Tokens(len(student_TD), student_TD.device)
        everyones: dict[str, Any] = {
            name: tokens.gather(value) if isinstance(value, Tensor) else value
            for name, value in settings.items()
        }
        student_ND: Tensor = _Gather.apply(student_TD, tokens)  # type: ignore[no-untyped-call]
        teacher_ND = None if teacher_TD is None else tokens.gather(teacher_TD)
        out = clipped_kl(student_ND, teacher_ND, rows, vocab_shard=self._shard, **everyones)
        own = {
            field.name: getattr(out.telemetry, field.name)[tokens.own]
            for field in fields(TokenTelemetry)
        }
        return ClippedKL(out.loss, TokenTelemetry(**own))

    @property
    def _is_spread(self) -> bool:
        return self._sharded is not None and not self._sharded.has_whole_head


class _Tokens:
    """How many tokens each rank has, and where this rank's are among all; a collective call."""

    def __init__(self, count: int, device: torch.device) -> None:
        counts_W = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
        dist.all_gather_single(counts_W, torch.tensor([count], device=device))
        self._counts: list[int] = counts_W.tolist()
        before = sum(self._counts[: dist.get_rank()])
        self.own = slice(before, before + count)

    def gather(self, values: Tensor) -> Tensor:
        """[T, …] of every rank, one after the other: [N, …]."""
        longest = max(self._counts)
        padded = values.new_zeros((longest, *values.shape[1:]))
        padded[: len(values)] = values
        everyones = values.new_empty((len(self._counts) * longest, *values.shape[1:]))
        dist.all_gather_single(everyones, padded)
        parts = everyones.view(-1, longest, *values.shape[1:])
        return torch.cat([part[:count] for part, count in zip(parts, self._counts, strict=True)])


class _Gather(torch.autograd.Function):
    """`_Tokens.gather` whose gradient is this rank's part.

    The loss makes the whole gradient on every rank: there is nothing left to add up.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, tokens: _Tokens) -> Tensor:
        ctx.own = tokens.own
        return tokens.gather(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.own], None
