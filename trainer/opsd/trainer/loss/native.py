"""The compiled row implementation: `torch.ops.opsd.clipped_kl_rows` of `csrc/clipped_kl.cpp`.

The library registers the schema and the CPU kernel when it is imported; what torch must know
besides (shapes without data, the backward) is registered here, once.
"""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError, NativeUnavailableError
from opsd.trainer.loss.config import Divergence, RowConfig
from opsd.trainer.loss.reference import TELEMETRY_COLUMNS, Rows

_SUPPORTED_DTYPES = (torch.float32, torch.bfloat16)


def is_available() -> bool:
    """Whether the compiled part is built for this interpreter and loads."""
    try:
        load()
    except NativeUnavailableError:
        return False
    return True


@functools.cache
def load() -> None:
    """Loads `opsd.trainer._C`; raises `NativeUnavailableError` saying how to build it."""
    try:
        importlib.import_module("opsd.trainer._C")
    except ImportError as error:
        raise NativeUnavailableError(
            f"implementation='native': opsd.trainer._C does not load ({error}); build it with "
            "`make setup` (or `python setup.py build_ext --inplace`), or ask for "
            "implementation='torch'"
        ) from error
    torch.library.register_fake("opsd::clipped_kl_rows", _fake)
    torch.library.register_autograd(
        "opsd::clipped_kl_rows", _backward, setup_context=_setup_context
    )


def clipped_kl_rows(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    row_mask_R: Tensor | None,
    sampled_ids_R: Tensor | None,
    config: RowConfig,
) -> Rows:
    """As `reference.clipped_kl_rows`, for forward KL on the CPU in fp32 or bf16."""
    load()
    if config.divergence is not Divergence.FORWARD_KL:
        raise LossArgumentError(
            f"divergence = {str(config.divergence)!r}: implementation='native' has forward_kl "
            "only; use implementation='torch'"
        )
    if (
        student_logits_RV.device.type != "cpu"
        or student_logits_RV.dtype not in _SUPPORTED_DTYPES
        or teacher_logits_RV.dtype != student_logits_RV.dtype
    ):
        raise LossArgumentError(
            f"student_logits {student_logits_RV.dtype} and teacher_logits "
            f"{teacher_logits_RV.dtype} on {student_logits_RV.device}: implementation='native' "
            "takes float32 or bfloat16, the same for both, on the CPU"
        )
    loss_R, telemetry_RK, grad_RV = torch.ops.opsd.clipped_kl_rows(
        student_logits_RV,
        teacher_logits_RV,
        row_mask_R,
        None if sampled_ids_R is None else sampled_ids_R.long(),
        str(config.clip),
        config.clip_value,
        config.temperature,
    )
    return Rows(loss_R, telemetry_RK, grad_RV)


def _fake(
    student_logits: Tensor,
    teacher_logits: Tensor,
    row_mask: Tensor | None,
    sampled_ids: Tensor | None,
    clip: str,
    clip_value: float,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = student_logits.shape[0]
    return (
        student_logits.new_empty((num_rows,), dtype=torch.float32),
        student_logits.new_empty((num_rows, len(TELEMETRY_COLUMNS)), dtype=torch.float32),
        student_logits.new_empty(student_logits.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, telemetry, grad = output
    ctx.mark_non_differentiable(telemetry, grad)
    ctx.save_for_backward(grad)


def _backward(ctx: Any, grad_loss: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (grad * grad_loss.unsqueeze(-1).to(grad.dtype), None, None, None, None, None, None)
