"""Which implementation computes the rows, and saying so where it is not the compiled one."""

import functools
import logging
from types import ModuleType
from typing import Literal, cast

import torch

from opsd.trainer.errors import LossArgumentError, NativeUnavailableError
from opsd.trainer.loss import native, reference
from opsd.trainer.loss.rows import RowImplementation

logger = logging.getLogger(__name__)

Implementation = Literal["auto", "native", "torch"]


def known(implementation: str) -> str:
    """The name as it came; raises `LossArgumentError` for another one."""
    if implementation not in ("auto", "native", "torch"):
        raise LossArgumentError(
            f"implementation = {implementation!r}: must be one of 'auto', 'native', 'torch'"
        )
    return implementation


def chosen(implementation: str, device: torch.device, dtype: torch.dtype) -> RowImplementation:
    """The rows for logits of this dtype on this device.

    "auto" is the compiled part where it is built for the device, else plain PyTorch, which is
    logged once. fp64 is for gradient checks and always plain PyTorch.

    Raises:
        NativeUnavailableError: "native" was asked for and is not built.
    """
    module: ModuleType = reference
    if implementation == "native":
        if dtype == torch.float64:
            raise LossArgumentError(
                "implementation='native' takes float32, bfloat16 or float16, not torch.float64"
            )
        native.load()
        module = native
    elif implementation == "auto" and dtype != torch.float64:
        if native.is_available(device.type):
            module = native
        else:
            _say_once(device.type)
    return cast(RowImplementation, module)


def in_use(device_type: str) -> str:
    """What "auto" means on such a device: "native-avx512", "native-cuda", "torch", …"""
    if not native.is_available(device_type):
        return "torch"
    return f"native-{native.cpu_kernel() if device_type == 'cpu' else device_type}"


def why_not_native(device_type: str) -> str | None:
    """The reason for plain PyTorch on such a device; None where the compiled part serves."""
    try:
        built = native.devices()
    except NativeUnavailableError as error:
        return str(error)
    if device_type in built:
        return None
    return (
        f"opsd.trainer._C was built for {', '.join(built)}, not for {device_type}: build it again "
        f"with `make setup FLAVOUR={device_type}` where the compiler for it is installed"
    )


@functools.cache
def _say_once(device_type: str) -> None:
    logger.warning(
        "loss: plain PyTorch on %s, slower and with more memory: %s",
        device_type,
        why_not_native(device_type),
    )
