"""The loss over many tokens, from hidden states or from logits, a chunk of rows at a time.

Shape suffixes: T tokens, R rows of one chunk, V vocabulary, D hidden size, K telemetry columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import native, reference
from opsd.trainer.loss.config import RowConfig, row_config
from opsd.trainer.loss.reference import TELEMETRY_COLUMNS, Rows, compute_dtype

Implementation = Literal["torch", "native"]
RowFunction = Callable[[Tensor, Tensor, Tensor | None, Tensor | None, RowConfig], Rows]

DEFAULT_CHUNK_SIZE = 1024


@dataclass(frozen=True, slots=True)
class TokenTelemetry:
    """What each token showed; every field is [T] in fp32 (fp64 for fp64 input), no gradient.

    Masked tokens hold 0 everywhere.
    """

    loss_T: Tensor
    """Divergence after clipping, nats; can be negative under `clamp`."""
    divergence_T: Tensor
    """Divergence before clipping, nats."""
    positive_divergence_T: Tensor
    """Sum of the entries above 0 before clipping, nats: what clipping can take from."""
    clipped_mass_T: Tensor
    """Teacher probability of the clipped entries, [0, 1]."""
    student_entropy_T: Tensor
    """Nats, of the tempered distribution."""
    teacher_entropy_T: Tensor
    """Nats, of the tempered distribution."""
    student_logprob_T: Tensor
    """log p_S of the sampled token, nats, tempered; 0 where `sampled_ids` was not given."""
    teacher_logprob_T: Tensor
    """log p_T of the sampled token, nats, tempered; 0 where `sampled_ids` was not given."""

    @property
    def clipped_share_T(self) -> Tensor:
        """Share of the divergence that clipping took away, [0, 1]."""
        removed_T = self.divergence_T - self.loss_T
        return torch.where(
            self.positive_divergence_T > 0, removed_T / self.positive_divergence_T, 0.0
        ).clamp(0.0, 1.0)


@dataclass(frozen=True, slots=True)
class ClippedKL:
    """The loss with what it was made of."""

    loss: Tensor
    """Scalar with gradient: sum over tokens of weight times loss."""
    telemetry: TokenTelemetry


def clipped_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    lm_head_weight: Tensor,
    *,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: str = "none",
    clip_value: float | None = None,
    temperature: float = 1.0,
    token_mask: Tensor | None = None,
    token_weight: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    implementation: Implementation = "torch",
) -> ClippedKL:
    """The clipped divergence from hidden states (arXiv 2601.18734, the OPSD objective).

    At every token n both logits are divided by the temperature, and over the whole vocabulary

        e[n, v] = p_T(v) (log p_T(v) - log p_S(v))      (forward KL; the others have their own e)
        loss    = sum_n weight[n] sum_v clip(e[n, v])

    The gradient runs through p_S only. It is computed in closed form together with the loss, so
    that tokens × vocabulary is held for one chunk at a time; a second derivative does not exist.

    Args:
        student_hidden: [T, D], the student's last hidden states, any floating dtype. Gets the
            gradient.
        teacher_hidden: [T, D], the teacher's for the same tokens. Gets none.
        lm_head_weight: [V, D], shared by both. Gets a gradient (the student's part) only where it
            requires one.
        divergence: "forward_kl", "reverse_kl" or "jsd", see `Divergence`.
        jsd_beta: weight of the teacher in the mixture, in (0, 1); read for "jsd" only.
        clip: "none", "clamp" or "scale", see `Clip`.
        clip_value: c in nats, above 0; read unless clip is "none".
        temperature: above 0.
        token_mask: [T] bool; False leaves a token out. Its hidden states are not read.
        token_weight: [T]; by default 1 / (number of tokens that are not masked).
        sampled_ids: [T] integer ids of the sampled tokens, for the telemetry.
        chunk_size: rows whose logits are held at once.
        implementation: "torch", or "native" for the compiled kernel. Never a silent fallback.

    Raises:
        LossArgumentError: (a ValueError) names the argument that is wrong.
        NativeUnavailableError: "native" was asked for and is not built.
    """
    for name, tensor in (("student_hidden", student_hidden), ("teacher_hidden", teacher_hidden)):
        _expect_matrix(name, tensor)
    _expect_matrix("lm_head_weight", lm_head_weight)
    _expect_same_shape("teacher_hidden", teacher_hidden, "student_hidden", student_hidden)
    if lm_head_weight.shape[1] != student_hidden.shape[1]:
        raise LossArgumentError(
            f"lm_head_weight {tuple(lm_head_weight.shape)} and student_hidden "
            f"{tuple(student_hidden.shape)}: the last dimensions must be equal"
        )
    config = row_config(divergence, jsd_beta, clip, clip_value, temperature)
    tokens = _Tokens.checked(
        student_hidden, token_mask, token_weight, sampled_ids, lm_head_weight.shape[0]
    )
    loss, loss_T, telemetry_TK = _HiddenLoss.apply(  # type: ignore[no-untyped-call]
        student_hidden,
        teacher_hidden.detach(),
        lm_head_weight,
        tokens,
        config,
        _positive("chunk_size", chunk_size),
        _row_function(implementation),
    )
    return ClippedKL(loss, _telemetry(loss_T, telemetry_TK))


def clipped_kl_from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: str = "none",
    clip_value: float | None = None,
    temperature: float = 1.0,
    token_mask: Tensor | None = None,
    token_weight: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    implementation: Implementation = "torch",
) -> ClippedKL:
    """As `clipped_kl`, from logits [T, V] that exist already; `student_logits` gets the gradient.

    Holds one more [T, V] tensor, the gradient, in the dtype of `student_logits`.
    """
    _expect_matrix("student_logits", student_logits)
    _expect_matrix("teacher_logits", teacher_logits)
    _expect_same_shape("teacher_logits", teacher_logits, "student_logits", student_logits)
    config = row_config(divergence, jsd_beta, clip, clip_value, temperature)
    tokens = _Tokens.checked(
        student_logits, token_mask, token_weight, sampled_ids, student_logits.shape[1]
    )
    loss, loss_T, telemetry_TK = _LogitsLoss.apply(  # type: ignore[no-untyped-call]
        student_logits,
        teacher_logits.detach(),
        tokens,
        config,
        _positive("chunk_size", chunk_size),
        _row_function(implementation),
    )
    return ClippedKL(loss, _telemetry(loss_T, telemetry_TK))


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What is known of each token besides its logits."""

    weight_T: Tensor  # 0 where masked
    mask_T: Tensor | None
    sampled_ids_T: Tensor | None

    @classmethod
    def checked(
        cls,
        rows: Tensor,
        mask_T: Tensor | None,
        weight_T: Tensor | None,
        sampled_ids_T: Tensor | None,
        num_vocab: int,
    ) -> "_Tokens":
        num_tokens, dtype, device = rows.shape[0], compute_dtype(rows.dtype), rows.device
        for name, tensor in (
            ("token_mask", mask_T),
            ("token_weight", weight_T),
            ("sampled_ids", sampled_ids_T),
        ):
            if tensor is not None and tuple(tensor.shape) != (num_tokens,):
                raise LossArgumentError(
                    f"{name} {tuple(tensor.shape)}: must be ({num_tokens},), one entry a token"
                )
        if mask_T is not None and mask_T.dtype != torch.bool:
            raise LossArgumentError(f"token_mask {mask_T.dtype}: must be bool")
        if sampled_ids_T is not None:
            if sampled_ids_T.dtype not in (torch.int64, torch.int32):
                raise LossArgumentError(f"sampled_ids {sampled_ids_T.dtype}: must be integer")
            if mask_T is not None:
                sampled_ids_T = sampled_ids_T.masked_fill(~mask_T, 0)  # padding ids may be -100
            if num_tokens > 0:
                low, high = (int(bound) for bound in sampled_ids_T.aminmax())
                if low < 0 or high >= num_vocab:
                    raise LossArgumentError(
                        f"sampled_ids in [{low}, {high}]: must lie in [0, {num_vocab})"
                    )
        if weight_T is None:
            kept = num_tokens if mask_T is None else int(mask_T.sum())
            weight_T = torch.full((num_tokens,), 1.0 / max(kept, 1), dtype=dtype, device=device)
        weight_T = weight_T.to(dtype)
        if mask_T is not None:
            weight_T = weight_T.masked_fill(~mask_T, 0.0)
        return cls(weight_T, mask_T, sampled_ids_T)

    def chunk(self, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        mask_R = None if self.mask_T is None else self.mask_T[rows]
        return mask_R, None if self.sampled_ids_T is None else self.sampled_ids_T[rows]


class _HiddenLoss(torch.autograd.Function):
    """Hidden states to the loss; the gradient is made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden_TD: Tensor,
        teacher_hidden_TD: Tensor,
        lm_head_weight_VD: Tensor,
        tokens: _Tokens,
        config: RowConfig,
        chunk_size: int,
        row_function: RowFunction,
    ) -> tuple[Tensor, Tensor, Tensor]:
        needs_hidden, _, needs_weight = ctx.needs_input_grad[:3]
        grad_hidden_TD = torch.zeros_like(student_hidden_TD) if needs_hidden else None
        # Chunks add up in fp32: a bf16 sum over many chunks would lose the small ones.
        grad_weight_VD = (
            torch.zeros_like(lm_head_weight_VD, dtype=tokens.weight_T.dtype)
            if needs_weight
            else None
        )
        loss_T, telemetry_TK = _empty_outputs(student_hidden_TD)
        for rows in _chunks(student_hidden_TD.shape[0], chunk_size):
            student_RD = student_hidden_TD[rows].to(lm_head_weight_VD.dtype)
            teacher_RD = teacher_hidden_TD[rows].to(lm_head_weight_VD.dtype)
            loss_T[rows], telemetry_TK[rows], grad_RV = row_function(
                student_RD @ lm_head_weight_VD.T,
                teacher_RD @ lm_head_weight_VD.T,
                *tokens.chunk(rows),
                config,
            )
            weight_R1 = tokens.weight_T[rows].unsqueeze(-1)
            if grad_hidden_TD is not None:
                grad_hidden_TD[rows] = ((grad_RV @ lm_head_weight_VD) * weight_R1).to(
                    grad_hidden_TD.dtype
                )
            if grad_weight_VD is not None:
                grad_weight_VD += (grad_RV * weight_R1).T @ student_RD.to(weight_R1.dtype)
        ctx.save_for_backward(
            grad_hidden_TD,
            None if grad_weight_VD is None else grad_weight_VD.to(lm_head_weight_VD.dtype),
        )
        ctx.mark_non_differentiable(loss_T, telemetry_TK)
        return (_weighted_sum(loss_T, tokens), loss_T, telemetry_TK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = (
            None if saved is None else saved * grad_loss.to(saved.dtype)
            for saved in ctx.saved_tensors
        )
        return (hidden, None, weight, None, None, None, None)


class _LogitsLoss(torch.autograd.Function):
    """Logits to the loss; keeps the gradient of the logits from the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        student_logits_TV: Tensor,
        teacher_logits_TV: Tensor,
        tokens: _Tokens,
        config: RowConfig,
        chunk_size: int,
        row_function: RowFunction,
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_TV = torch.empty_like(student_logits_TV) if ctx.needs_input_grad[0] else None
        loss_T, telemetry_TK = _empty_outputs(student_logits_TV)
        for rows in _chunks(student_logits_TV.shape[0], chunk_size):
            loss_T[rows], telemetry_TK[rows], grad_RV = row_function(
                student_logits_TV[rows], teacher_logits_TV[rows], *tokens.chunk(rows), config
            )
            if grad_TV is not None:
                grad_TV[rows] = (grad_RV * tokens.weight_T[rows].unsqueeze(-1)).to(grad_TV.dtype)
        ctx.save_for_backward(grad_TV)
        ctx.mark_non_differentiable(loss_T, telemetry_TK)
        return (_weighted_sum(loss_T, tokens), loss_T, telemetry_TK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TV,) = ctx.saved_tensors
        return (grad_TV * grad_loss.to(grad_TV.dtype), None, None, None, None, None)


def _weighted_sum(loss_T: Tensor, tokens: _Tokens) -> Tensor:
    return (loss_T * tokens.weight_T).sum()


def _empty_outputs(rows: Tensor) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(rows.dtype)
    loss_T = torch.empty(rows.shape[0], dtype=dtype, device=rows.device)
    return loss_T, loss_T.new_empty((rows.shape[0], len(TELEMETRY_COLUMNS)))


def _chunks(num_tokens: int, chunk_size: int) -> list[slice]:
    return [slice(start, start + chunk_size) for start in range(0, num_tokens, chunk_size)]


def _telemetry(loss_T: Tensor, telemetry_TK: Tensor) -> TokenTelemetry:
    columns = {
        f"{name}_T": telemetry_TK[:, column] for column, name in enumerate(TELEMETRY_COLUMNS)
    }
    return TokenTelemetry(loss_T=loss_T, **columns)


def _row_function(implementation: str) -> RowFunction:
    if implementation == "torch":
        return reference.clipped_kl_rows
    if implementation == "native":
        native.load()
        return native.clipped_kl_rows
    raise LossArgumentError(
        f"implementation = {implementation!r}: must be one of 'torch', 'native'"
    )


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise LossArgumentError(f"{name} = {value}: must be at least 1")
    return value


def _expect_matrix(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2 or not tensor.is_floating_point():
        raise LossArgumentError(
            f"{name} {tuple(tensor.shape)} {tensor.dtype}: must be a floating-point matrix"
        )


def _expect_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape or tensor.device != other.device:
        raise LossArgumentError(
            f"{name} {tuple(tensor.shape)} on {tensor.device}: must match {other_name} "
            f"{tuple(other.shape)} on {other.device}"
        )
