"""The compiled rows: the operators of `csrc/row_ops.cpp`, on the CPU and on NVIDIA GPUs.

The library registers schemas and kernels when it is imported; what torch must know besides (shapes
without data, the backward) is registered here, once.
"""

import functools
import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.errors import LossArgumentError, NativeUnavailableError
from opsd.trainer.loss.config import RowConfig
from opsd.trainer.loss.parallel import VocabShard, combined
from opsd.trainer.loss.rows import NORMALISER_COLUMNS, TELEMETRY_COLUMNS, Rows

name = "native"

SUPPORTED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SUM_COLUMNS = len(TELEMETRY_COLUMNS) + 3  # the loss first, what the gradient needs last


def is_available(device_type: str = "cpu") -> bool:
    """Whether the compiled part loads here and has kernels for this kind of device."""
    try:
        load()
    except NativeUnavailableError:
        return False
    return device_type in devices()


def devices() -> tuple[str, ...]:
    """The kinds of device that the compiled part was built for."""
    load()
    return ("cpu", "cuda") if importlib.import_module("opsd.trainer._C").has_cuda() else ("cpu",)


def cpu_kernel() -> str:
    """Which kernel this processor runs: "avx512", "avx2" or "generic"."""
    load()
    wish = os.environ.get("OPSD_CPU_KERNEL", "generic")
    if wish not in ("avx512", "avx2", "generic"):
        raise LossArgumentError(f"OPSD_CPU_KERNEL={wish}: must be avx512, avx2 or generic")
    kernel: str = importlib.import_module("opsd.trainer._C").cpu_kernel()
    return kernel


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself (AMX or AVX512-BF16)."""
    # As its own file has it: the compiled part may not be there.
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags or "bf16" in flags


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
    _register()


@functools.cache
def _register() -> None:
    for operator, fake in _FAKES.items():
        torch.library.register_fake(f"opsd::{operator}", fake)
    torch.library.register_autograd(
        "opsd::clipped_kl_rows", _backward, setup_context=_setup_context
    )


def check(student_logits: Tensor, teacher_logits: Tensor | None) -> None:
    """Raises where the compiled part has no kernel for this device or these dtypes."""
    load()
    dtype, device = student_logits.dtype, student_logits.device
    if (
        device.type not in devices()
        or dtype not in SUPPORTED_DTYPES
        or (teacher_logits is not None and teacher_logits.dtype != dtype)
    ):
        teacher = "" if teacher_logits is None else f" and teacher_logits {teacher_logits.dtype}"
        raise LossArgumentError(
            f"student_logits {dtype}{teacher} on {device}: implementation='native' takes float32, "
            f"bfloat16 or float16, the same for both, on: {', '.join(devices())}"
        )


def clipped_kl_rows(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor,
    sampled_ids_R: Tensor | None,
    config: RowConfig,
    shard: VocabShard | None = None,
    *,
    overwrite: bool = False,
) -> Rows:
    """As `reference.clipped_kl_rows`, in fp32, bf16 or fp16."""
    check(student_logits_RV, teacher_logits_RV)
    ids_R = None if sampled_ids_R is None else sampled_ids_R.long()
    settings = config.arguments()
    ops = torch.ops.opsd
    if shard is None and not overwrite:
        return Rows(*ops.clipped_kl_rows(student_logits_RV, teacher_logits_RV, ids_R, *settings))
    if shard is None:
        loss_R, telemetry_RK = ops.clipped_kl_rows_(
            student_logits_RV, teacher_logits_RV, ids_R, *settings
        )
        return Rows(loss_R, telemetry_RK, student_logits_RV)
    normalisers_RN = combined(
        normalisers(student_logits_RV, teacher_logits_RV, config),
        config.temperature,
        shard,
    )
    local_R = None if ids_R is None else shard.local(ids_R)
    sums_RK = shard.sum_(
        ops.kl_sums(student_logits_RV, teacher_logits_RV, normalisers_RN, local_R, *settings)
    )
    grad_RV = student_logits_RV if overwrite else student_logits_RV.clone()
    ops.kl_gradient_(grad_RV, teacher_logits_RV, normalisers_RN, sums_RK, *settings)
    columns = sums_RK.float()
    return Rows(columns[:, 0], columns[:, 1 : 1 + len(TELEMETRY_COLUMNS)], grad_RV)


def normalisers(
    student_logits_RV: Tensor,
    teacher_logits_RV: Tensor | None,
    config: RowConfig,
) -> Tensor:
    """See `RowImplementation.normalisers`."""
    check(student_logits_RV, teacher_logits_RV)
    found: Tensor = torch.ops.opsd.kl_normalisers(
        student_logits_RV, teacher_logits_RV, config.temperature, config.softcap
    )
    return found


def softmax_gradient_(
    student_logits_RV: Tensor,
    normalisers_RN: Tensor,
    coefficient_R: Tensor,
    config: RowConfig,
) -> None:
    """See `RowImplementation.softmax_gradient_`."""
    check(student_logits_RV, None)
    torch.ops.opsd.softmax_gradient_(
        student_logits_RV,
        normalisers_RN,
        coefficient_R.float(),
        config.temperature,
        config.softcap,
    )


def _fake_rows(student: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (*_fake_overwritten(student), student.new_empty(student.shape))


def _fake_overwritten(student: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    rows = student.shape[0]
    return (
        student.new_empty((rows,), dtype=torch.float32),
        student.new_empty((rows, len(TELEMETRY_COLUMNS)), dtype=torch.float32),
    )


def _fake_normalisers(student: Tensor, *_: Any) -> Tensor:
    return student.new_empty((student.shape[0], NORMALISER_COLUMNS), dtype=torch.float64)


def _fake_sums(student: Tensor, *_: Any) -> Tensor:
    return student.new_empty((student.shape[0], _SUM_COLUMNS), dtype=torch.float64)


def _fake_nothing(*_: Any) -> None:
    return None


_FAKES: dict[str, Callable[..., Any]] = {
    "clipped_kl_rows": _fake_rows,
    "clipped_kl_rows_": _fake_overwritten,
    "kl_normalisers": _fake_normalisers,
    "kl_sums": _fake_sums,
    "kl_gradient_": _fake_nothing,
    "softmax_gradient_": _fake_nothing,
}


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, telemetry, grad = output
    ctx.mark_non_differentiable(telemetry, grad)
    ctx.save_for_backward(grad)


def _backward(ctx: Any, grad_loss: Tensor, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    (grad,) = ctx.saved_tensors
    return (grad * grad_loss.unsqueeze(-1).to(grad.dtype), *[None] * 8)
