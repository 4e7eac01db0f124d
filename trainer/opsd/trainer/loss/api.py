"""The loss over many tokens, from hidden states or from logits, a chunk of rows at a time.

Shape suffixes: T tokens, V vocabulary (of this rank), D hidden size, K telemetry columns or the
teacher's greatest entries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError
from opsd.trainer.loss import operators
from opsd.trainer.loss.choose import Implementation, known
from opsd.trainer.loss.config import Divergence, RowConfig, expect_whole, row_config
from opsd.trainer.loss.heads import CHUNK_BYTES, logits_dtype
from opsd.trainer.loss.parallel import VocabShard
from opsd.trainer.loss.rows import TELEMETRY_COLUMNS, compute_dtype


@dataclass(frozen=True, slots=True)
class TokenTelemetry:
    """What each token showed; every field is [T] in fp32 (fp64 for fp64 input), no gradient.

    Masked tokens hold 0 everywhere. With `top_k` or a teacher's support, the divergence, what is
    clipped of it and the teacher's entropy are those of the k + 1 entries; with the policy gradient
    the divergence is the sampled token's.
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
    """log p_T of the sampled token, nats, tempered; 0 where `sampled_ids` was not given, and where
    a teacher's support does not hold it."""

    @property
    def clipped_share_T(self) -> Tensor:
        """Share of the positive divergence that clipping took away, [0, 1]."""
        removed_T = self.divergence_T - self.loss_T
        share_T = torch.where(
            self.positive_divergence_T > 0, removed_T / self.positive_divergence_T, 0.0
        ).clamp(0.0, 1.0)
        # Of an infinite divergence a finite loss is nothing, and an infinite one everything.
        all_T = self.loss_T.isfinite().to(share_T.dtype)
        return torch.where(self.positive_divergence_T.isinf(), all_T, share_T)


@dataclass(frozen=True, slots=True)
class ClippedKL:
    """The loss with what it was made of."""

    loss: Tensor
    """Scalar with gradient: sum over tokens of weight times loss."""
    telemetry: TokenTelemetry


def clipped_kl(
    student_hidden: Tensor,
    teacher_hidden: Tensor | None,
    lm_head_weight: Tensor,
    *,
    lm_head_bias: Tensor | None = None,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: str = "none",
    clip_value: float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int | None = None,
    teacher_topk_ids: Tensor | None = None,
    teacher_topk_logprobs: Tensor | None = None,
    token_mask: Tensor | None = None,
    token_weight: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    vocab_shard: VocabShard | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
) -> ClippedKL:
    """The clipped divergence from hidden states (arXiv 2601.18734, the OPSD objective).

    At every token n both logits are divided by the temperature, and over the whole vocabulary

        e[n, v] = p_T(v) (log p_T(v) - log p_S(v))      (forward KL; the others have their own e)
        loss    = sum_n weight[n] sum_v clip(e[n, v])

    The gradient runs through p_S only. It is computed in closed form together with the loss, so
    that tokens × vocabulary is held for one chunk at a time; a second derivative does not exist
    (`create_graph=True` sees a constant).
    The same input gives the same bits.

    Args:
        student_hidden: [T, D], the student's last hidden states, any floating dtype. Gets the
            gradient.
        teacher_hidden: [T, D], the teacher's for the same tokens. Gets none. None with
            `teacher_topk_ids`.
        lm_head_weight: [V, D], shared by both; the products run in its dtype (under autocast, in
            autocast's). Gets a gradient (the student's part) only where it requires one.
        lm_head_bias: [V]; likewise.
        divergence: "forward_kl", "reverse_kl", "jsd" or "policy_gradient", see `Divergence`.
        jsd_beta: weight of the teacher in the mixture, in [0, 1]; read for "jsd" only.
        clip: "none", "clamp" or "scale", see `Clip`.
        clip_value: c in nats, above 0; read unless clip is "none".
        temperature: above 0.
        softcap: logits pass through softcap * tanh(logits / softcap) before the temperature.
        top_k: compare on the teacher's k greatest entries, and one more for all the others.
        teacher_topk_ids: [T, K] distinct ids: the teacher's greatest entries as a sampler gave
            them, in place of `teacher_hidden`; implies the k + 1 entries of `top_k`.
        teacher_topk_logprobs: [T, K], their log-probabilities at this temperature, over the whole
            vocabulary.
        token_mask: [T] bool; False leaves a token out. Its hidden states are not read.
        token_weight: [T]; by default 1 / (number of tokens that are not masked).
        sampled_ids: [T] integer ids of the sampled tokens, for the telemetry and the policy
            gradient.
        vocab_shard: where lm_head is spread over ranks: this rank's place. Hidden states are the
            same on all ranks, and so are the results; ids are global.
        chunk_size: rows whose logits are held at once; by default what fits into a fixed amount of
            memory.
        implementation: "auto" (compiled where it is built, else plain PyTorch, logged once),
            "native" for the compiled one or nothing, "torch".

    Raises:
        LossArgumentError: (a ValueError) names the argument that is wrong: settings, shapes,
            dtypes, devices, ids, NaN or infinity.
        NativeUnavailableError: "native" was asked for and is not built.
    """
    _expect_matrix("student_hidden", student_hidden)
    _expect_matrix("lm_head_weight", lm_head_weight)
    if lm_head_weight.shape[0] == 0:
        raise LossArgumentError("lm_head_weight (0, …): must have at least one row")
    if lm_head_weight.shape[1] != student_hidden.shape[1]:
        raise LossArgumentError(
            f"lm_head_weight {tuple(lm_head_weight.shape)} and student_hidden "
            f"{tuple(student_hidden.shape)}: the last dimensions must be equal"
        )
    _expect_device("lm_head_weight", lm_head_weight, student_hidden)
    if lm_head_bias is not None:
        _expect_shape("lm_head_bias", lm_head_bias, (lm_head_weight.shape[0],))
        _expect_floating("lm_head_bias", lm_head_bias)
        _expect_device("lm_head_bias", lm_head_bias, student_hidden)
    config = row_config(divergence, jsd_beta, clip, clip_value, temperature, softcap, top_k)
    _expect_teacher("hidden", teacher_hidden, student_hidden, config, teacher_topk_ids)
    given = _checked_tokens(
        student_hidden, token_mask, token_weight, sampled_ids, teacher_topk_ids,
        teacher_topk_logprobs, config,
    )  # fmt: skip
    place = _place(vocab_shard, lm_head_weight.shape[0])
    dtype = lm_head_weight.dtype
    if torch.is_autocast_enabled(student_hidden.device.type):
        dtype = torch.get_autocast_dtype(student_hidden.device.type)
    weight = lm_head_weight.to(dtype)
    bias = None if lm_head_bias is None else lm_head_bias.to(dtype)
    with_gradient = torch.is_grad_enabled()
    loss, loss_T, telemetry_TK, *_ = operators.from_hidden(
        student_hidden,
        None if teacher_hidden is None else teacher_hidden.detach(),
        weight,
        bias,
        *given,
        *config.arguments(),
        config.top_k,
        _rows_per_chunk(chunk_size, vocab_shard, weight, student_hidden.device),
        known(implementation),
        *place,
        with_gradient and student_hidden.requires_grad,
        with_gradient and weight.requires_grad,
        with_gradient and bias is not None and bias.requires_grad,
    )
    return ClippedKL(loss, _telemetry(loss_T, telemetry_TK))


def clipped_kl_from_logits(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    *,
    divergence: str = "forward_kl",
    jsd_beta: float = 0.5,
    clip: str = "none",
    clip_value: float | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    top_k: int | None = None,
    teacher_topk_ids: Tensor | None = None,
    teacher_topk_logprobs: Tensor | None = None,
    token_mask: Tensor | None = None,
    token_weight: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    vocab_shard: VocabShard | None = None,
    chunk_size: int | None = None,
    implementation: Implementation = "auto",
) -> ClippedKL:
    """As `clipped_kl`, from logits [T, V] that exist already; `student_logits` gets the gradient.

    Holds one more [T, V] tensor, the gradient, in the dtype of `student_logits` (for fp16 in fp32).
    """
    _expect_matrix("student_logits", student_logits)
    config = row_config(divergence, jsd_beta, clip, clip_value, temperature, softcap, top_k)
    _expect_teacher("logits", teacher_logits, student_logits, config, teacher_topk_ids)
    given = _checked_tokens(
        student_logits, token_mask, token_weight, sampled_ids, teacher_topk_ids,
        teacher_topk_logprobs, config,
    )  # fmt: skip
    num_vocab = student_logits.shape[1]
    loss, loss_T, telemetry_TK, _ = operators.from_logits(
        student_logits,
        None if teacher_logits is None else teacher_logits.detach(),
        *given,
        *config.arguments(),
        config.top_k,
        _rows_per_chunk(chunk_size, vocab_shard, student_logits.T, student_logits.device),
        known(implementation),
        *_place(vocab_shard, num_vocab),
        torch.is_grad_enabled() and student_logits.requires_grad,
    )
    return ClippedKL(loss, _telemetry(loss_T, telemetry_TK))


def _telemetry(loss_T: Tensor, telemetry_TK: Tensor) -> TokenTelemetry:
    columns = {
        f"{name}_T": telemetry_TK[:, column] for column, name in enumerate(TELEMETRY_COLUMNS)
    }
    return TokenTelemetry(loss_T=loss_T, **columns)


def _rows_per_chunk(
    chunk_size: int | None, shard: VocabShard | None, head_VD: Tensor, device: torch.device
) -> int:
    if chunk_size is None:
        # The ranks of a shard exchange numbers chunk by chunk, so all must make the same ones.
        num_vocab = head_VD.shape[0] if shard is None else shard.largest
        row_bytes = 2 * num_vocab * logits_dtype(head_VD.dtype, device).itemsize
        return max(16, min(4096, CHUNK_BYTES.get(device.type, 1 << 30) // row_bytes))
    expect_whole("chunk_size", chunk_size)
    return chunk_size


def _place(shard: VocabShard | None, num_local: int) -> tuple[list[int], str]:
    if shard is None:
        return [], ""
    if shard.size != num_local:
        raise LossArgumentError(
            f"vocab_shard: made for {shard.size} ids of this rank, lm_head has {num_local}"
        )
    return [shard.start, shard.num_vocab, shard.largest], shard.group_name


def _expect_teacher(
    kind: str,
    teacher: Tensor | None,
    student: Tensor,
    config: RowConfig,
    topk_ids: Tensor | None,
) -> None:
    name = f"teacher_{kind}"
    if topk_ids is not None and config.top_k > 0:
        raise LossArgumentError("top_k: teacher_topk_ids say already which entries; leave it out")
    if teacher is None:
        if topk_ids is None:
            raise LossArgumentError(f"{name} is None: give it, or teacher_topk_ids")
        if config.divergence is Divergence.POLICY_GRADIENT:
            raise LossArgumentError(f"{name} is None: the policy gradient needs it")
        return
    if topk_ids is not None:
        raise LossArgumentError(f"teacher_topk_ids: give either them or {name}, not both")
    _expect_matrix(name, teacher)
    _expect_shape(name, teacher, tuple(student.shape))
    _expect_device(name, teacher, student)
    if kind == "logits" and teacher.dtype != student.dtype:
        raise LossArgumentError(f"{name} {teacher.dtype}: must be student_logits' {student.dtype}")


def _checked_tokens(
    rows: Tensor,
    mask_T: Tensor | None,
    weight_T: Tensor | None,
    sampled_ids_T: Tensor | None,
    topk_ids_TK: Tensor | None,
    topk_logprobs_TK: Tensor | None,
    config: RowConfig,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """What depends on no data: shapes, dtypes, devices. `chunks.Chunks` looks at the values."""
    num_tokens = rows.shape[0]
    for name, tensor in (
        ("token_mask", mask_T),
        ("token_weight", weight_T),
        ("sampled_ids", sampled_ids_T),
    ):
        if tensor is not None:
            if not isinstance(tensor, Tensor):
                raise LossArgumentError(f"{name}: must be a tensor, got {type(tensor).__name__}")
            _expect_shape(name, tensor, (num_tokens,), "one entry a token")
            _expect_device(name, tensor, rows)
    if mask_T is not None and mask_T.dtype != torch.bool:
        raise LossArgumentError(f"token_mask {mask_T.dtype}: must be bool")
    if weight_T is not None:
        if weight_T.is_complex():
            raise LossArgumentError(f"token_weight {weight_T.dtype}: must be real")
        if weight_T.requires_grad:
            raise LossArgumentError("token_weight requires a gradient, but gets none: detach it")
    _expect_integers("sampled_ids", sampled_ids_T)
    _expect_integers("teacher_topk_ids", topk_ids_TK)
    if config.divergence is Divergence.POLICY_GRADIENT and sampled_ids_T is None:
        raise LossArgumentError("sampled_ids is None: the policy gradient needs it")
    if (topk_ids_TK is None) != (topk_logprobs_TK is None):
        raise LossArgumentError("teacher_topk_ids and teacher_topk_logprobs: give both or neither")
    if topk_ids_TK is not None and topk_logprobs_TK is not None:
        if topk_ids_TK.dim() != 2 or topk_ids_TK.shape[0] != num_tokens or not topk_ids_TK.shape[1]:
            raise LossArgumentError(
                f"teacher_topk_ids {tuple(topk_ids_TK.shape)}: must be ({num_tokens}, k), k from 1"
            )
        _expect_floating("teacher_topk_logprobs", topk_logprobs_TK)
        _expect_shape("teacher_topk_logprobs", topk_logprobs_TK, tuple(topk_ids_TK.shape))
        _expect_device("teacher_topk_ids", topk_ids_TK, rows)
        _expect_device("teacher_topk_logprobs", topk_logprobs_TK, rows)
    weight_T = None if weight_T is None else weight_T.detach().to(compute_dtype(rows.dtype))
    return mask_T, weight_T, sampled_ids_T, topk_ids_TK, topk_logprobs_TK


def _expect_matrix(name: str, tensor: Tensor) -> None:
    if tensor.dim() != 2 or not tensor.is_floating_point() or tensor.shape[1] == 0:
        raise LossArgumentError(
            f"{name} {tuple(tensor.shape)} {tensor.dtype}: must be a floating-point matrix with at "
            "least one column"
        )


def _expect_shape(name: str, tensor: Tensor, shape: tuple[int, ...], what: str = "") -> None:
    if tuple(tensor.shape) != shape:
        because = f", {what}" if what else ""
        raise LossArgumentError(f"{name} {tuple(tensor.shape)}: must be {shape}{because}")


def _expect_device(name: str, tensor: Tensor, student: Tensor) -> None:
    if tensor.device != student.device:
        raise LossArgumentError(
            f"{name} on {tensor.device}: must be on the student's device, {student.device}"
        )


def _expect_integers(name: str, tensor: Tensor | None) -> None:
    if tensor is not None and tensor.dtype not in (torch.int64, torch.int32):
        raise LossArgumentError(f"{name} {tensor.dtype}: must be integer, int64 or int32")


def _expect_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise LossArgumentError(f"{name} {tensor.dtype}: must be floating-point")
