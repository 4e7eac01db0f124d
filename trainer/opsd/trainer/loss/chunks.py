"""The loop over chunks of tokens that both forms of the loss share.

Shape suffixes: T tokens, R rows of one chunk, V vocabulary (of this shard), K telemetry columns.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import choose, sparse
from opsd.trainer.loss.config import Clip, Divergence, RowConfig
from opsd.trainer.loss.parallel import VocabShard
from opsd.trainer.loss.rows import TELEMETRY_COLUMNS, Rows, compute_dtype

Index = slice | Tensor


class Given(NamedTuple):
    """What is known of each token besides its logits; None where nothing is."""

    mask_T: Tensor | None
    weight_T: Tensor | None
    sampled_ids_T: Tensor | None
    topk_ids_TK: Tensor | None
    topk_logprobs_TK: Tensor | None


class Chunks:
    """Iterates over the tokens that count; `rows` computes a chunk and keeps what it found.

    Args:
        tokens: [T, …], the student's tensor: its length, device and dtype are the loss's.
        num_local: ids of the vocabulary in this process.
        logits_dtype: of the logits that `rows` will get.
        given: checked here, as far as it depends on data.
        settings: the fields of `RowConfig` as an operator takes them.
        how: implementation, chunk size, place of the shard or nothing, its group.
        needs: which gradients are wanted; the same on all ranks of a shard.

    Raises:
        LossArgumentError: on all ranks of a shard, where any of them has a reason.
    """

    def __init__(
        self,
        tokens: Tensor,
        num_local: int,
        logits_dtype: torch.dtype,
        given: Given,
        settings: tuple[str, float, str, float, float, float, int],
        how: tuple[str, int, list[int], str],
        needs: tuple[bool, ...],
    ) -> None:
        divergence, jsd_beta, clip, clip_value, temperature, softcap, top_k = settings
        kind, mode = Divergence(divergence), Clip(clip)
        self._config = RowConfig(kind, jsd_beta, mode, clip_value, temperature, softcap, top_k)
        implementation, self._chunk_size, place, group_name = how
        self._implementation = choose.chosen(implementation, tokens.device, logits_dtype)
        self.shard = VocabShard(group_name, place[0], num_local, *place[1:]) if place else None
        self._logits_dtype = logits_dtype
        self._num_tokens = len(tokens)
        self._kept_T = None if given.mask_T is None else given.mask_T.nonzero().squeeze(-1)
        self._given = given
        self.loss_T, self.telemetry_TK = empty_outputs(tokens)
        self.loss_T.zero_()
        self.telemetry_TK.zero_()
        problem = None
        try:
            self._check_given(num_local if self.shard is None else self.shard.num_vocab)
            self._weight_T = self._weights()
        except LossArgumentError as error:
            problem = error
        if self.shard is not None:
            self._agree(problem, needs)
        if problem is not None:
            raise problem

    def __iter__(self) -> Iterator[Index]:
        """Tokens that are not masked, `chunk_size` at a time; masked ones are never looked at."""
        count = self._num_tokens if self._kept_T is None else len(self._kept_T)
        if count == 0:
            return
        # Chunks of equal size: a short last one would multiply less efficiently.
        size = -(-count // -(-count // self._chunk_size))
        for start in range(0, count, size):
            part = slice(start, min(start + size, count))
            yield part if self._kept_T is None else self._kept_T[part]

    def rows(
        self,
        index: Index,
        student_RV: Tensor,
        teacher_RV: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Computes these tokens; `student_RV` may be overwritten.

        Args:
            index: of the tokens.
            student_RV: contiguous logits.
            teacher_RV: logits, or None where `given` has the teacher's greatest entries.

        Returns:
            The gradient of the logits (in their dtype, [R, V]) and what to multiply it by ([R, 1]).
        """
        out = self._rows(index, student_RV, teacher_RV)
        self.loss_T[index], self.telemetry_TK[index] = out.loss_R, out.telemetry_RK
        return out.grad_student_logits_RV, self._weight_T[index].unsqueeze(-1)

    def loss(self, **inputs: Tensor | None) -> Tensor:
        """Sum over tokens of weight times loss, once all chunks are done.

        Args:
            inputs: the arguments that a NaN could have come from, by name.

        Raises:
            LossArgumentError: a token has no loss; names the argument and the place.
        """
        # Once, at the end: on a GPU every look at a value waits for all work before it.
        # An infinite forward KL has a gradient all the same, its own; the others have none.
        finite = self._config.divergence is not Divergence.FORWARD_KL
        wrong_T = ~self.loss_T.isfinite() if finite else self.loss_T.isnan()
        if bool(wrong_T.any()):
            raise LossArgumentError(self._what_is_wrong(_first(wrong_T), inputs))
        return torch.where(self._weight_T == 0, 0.0, self.loss_T * self._weight_T).sum()

    def _rows(self, index: Index, student_RV: Tensor, teacher_RV: Tensor | None) -> Rows:
        how, config, shard = self._implementation, self._config, self.shard
        given = self._given
        ids_R = None if given.sampled_ids_T is None else given.sampled_ids_T[index]
        if config.divergence is Divergence.POLICY_GRADIENT:
            assert teacher_RV is not None
            assert ids_R is not None
            return sparse.policy_gradient_rows(how, student_RV, teacher_RV, ids_R, config, shard)
        if config.top_k > 0 or teacher_RV is None:
            support = None
            if given.topk_ids_TK is not None and given.topk_logprobs_TK is not None:
                support = sparse.Support(given.topk_ids_TK[index], given.topk_logprobs_TK[index])
            return sparse.top_k_rows(how, student_RV, teacher_RV, support, ids_R, config, shard)
        return how.clipped_kl_rows(student_RV, teacher_RV, ids_R, config, shard, overwrite=True)

    def _weights(self) -> Tensor:
        """[T] in the compute dtype, 0 where masked."""
        weight_T = self._given.weight_T
        kept = self._num_tokens if self._kept_T is None else len(self._kept_T)
        if weight_T is None:
            weight_T = torch.full_like(self.loss_T, 1.0 / max(kept, 1))
        weight_T = weight_T.to(self.loss_T.dtype)
        if self._given.mask_T is not None:
            weight_T = weight_T.masked_fill(~self._given.mask_T, 0.0)
        finite_T = weight_T.isfinite()
        if not bool(finite_T.all()):
            raise LossArgumentError(f"token_weight[{_first(~finite_T)}]: must be finite")
        return weight_T

    def _check_given(self, num_vocab: int) -> None:
        index: Index = slice(None) if self._kept_T is None else self._kept_T
        given = self._given
        if given.sampled_ids_T is not None:
            ids_R = given.sampled_ids_T[index]  # padding may be -100
            if ids_R.numel() > 0:
                low, high = (int(bound) for bound in ids_R.aminmax())
                if low < 0 or high >= num_vocab:
                    raise LossArgumentError(
                        f"sampled_ids in [{low}, {high}]: must lie in [0, {num_vocab})"
                    )
        if given.topk_ids_TK is not None and given.topk_logprobs_TK is not None:
            sparse.check_support(given.topk_ids_TK[index], given.topk_logprobs_TK[index], num_vocab)

    def _agree(self, problem: LossArgumentError | None, needs: tuple[bool, ...]) -> None:
        """One exchange before the work: a rank that raised alone would leave the others waiting."""
        assert self.shard is not None
        kept = self._num_tokens if self._kept_T is None else len(self._kept_T)
        wanted = sum(1 << place for place, need in enumerate(needs) if need)
        mine = [float(problem is not None), kept, -kept, wanted, -wanted]
        found = self.shard.max_(self.loss_T.new_tensor(mine, dtype=torch.float64)).tolist()
        if found[0] and problem is None:
            raise LossArgumentError("an argument of another rank is wrong, and it says which one")
        if problem is None and found[1] != -found[2]:
            raise LossArgumentError(
                f"token_mask: the ranks keep from {-found[2]:.0f} to {found[1]:.0f} tokens; hidden "
                "states and masks must be the same on all of them"
            )
        if problem is None and found[3] != -found[4]:
            raise LossArgumentError(
                "vocab_shard: student_hidden, lm_head_weight and lm_head_bias must require a "
                "gradient on all ranks or on none"
            )

    def _what_is_wrong(self, token: int, inputs: Mapping[str, Tensor | None]) -> str:
        for name, tensor in inputs.items():
            if tensor is None:
                continue
            if name.startswith("lm_head"):
                # A bias of -inf takes an entry out of the vocabulary.
                bad = ~tensor.isfinite() & ~((tensor == -torch.inf) & (tensor.dim() == 1))
                if bool(bad.any()):
                    where = ", ".join(str(int(i)) for i in bad.nonzero()[0])
                    return f"{name}[{where}]: NaN or infinity"
                if bool((tensor == -torch.inf).all()):
                    return f"{name}: -inf everywhere: at least one entry must be above it"
                continue
            values = tensor[token]
            wrong = values.isnan() | (values == torch.inf)
            if name.endswith("hidden"):
                wrong = ~values.isfinite()
            if bool(wrong.any()):
                return f"{name}[{token}, {_first(wrong)}]: {float(values[wrong][0])} in the input"
            if bool((values == -torch.inf).all()):
                return f"{name}[{token}]: -inf everywhere: at least one entry must be above it"
        given = [name for name in list(inputs)[:2] if inputs[name] is not None]
        names = " and ".join(f"{name}[{token}]" for name in given)
        if self.shard is not None and bool(self.loss_T[token].isnan()):
            return f"{names}: no loss comes out; the input of another rank is not finite"
        if self._config.divergence is Divergence.POLICY_GRADIENT:
            return (
                f"sampled_ids[{token}]: the sampled token has probability 0 under the student or "
                "the teacher; mask the token out, or set clip"
            )
        if not bool(self.loss_T[token].isnan()):
            return (
                f"{names}: the divergence is infinite, as the student gives probability to what "
                "the teacher excludes (-inf, or far below the others); set clip, or mask the "
                "the token out"
            )
        return f"{names}: the logits overflow {self._logits_dtype}"


def empty_outputs(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """[T] losses and [T, K] telemetry, not filled."""
    loss_T = tokens.new_empty((tokens.shape[0],), dtype=compute_dtype(tokens.dtype))
    return loss_T, loss_T.new_empty((tokens.shape[0], len(TELEMETRY_COLUMNS)))


def _first(condition: Tensor) -> int:
    return int(condition.nonzero()[0, 0])
