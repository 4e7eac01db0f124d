"""What one row of the loss computes, checked once."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from opsd.trainer.errors import LossArgumentError


class Divergence(StrEnum):
    """The divergence between teacher p_T and student p_S at one position."""

    FORWARD_KL = "forward_kl"
    """sum_v p_T log(p_T / p_S): the paper's default, covers all the teacher's modes."""
    REVERSE_KL = "reverse_kl"
    """sum_v p_S log(p_S / p_T): seeks one of the teacher's modes."""
    JSD = "jsd"
    """beta KL(p_T || m) + (1 - beta) KL(p_S || m) with m = beta p_T + (1 - beta) p_S."""


class Clip(StrEnum):
    """How the share e[v] of one vocabulary entry in the divergence is bounded by c."""

    NONE = "none"
    """Not at all."""
    CLAMP = "clamp"
    """min(e, c): an entry above c has no gradient of its own (the paper's)."""
    SCALE = "scale"
    """e * min(1, c / e) with the factor held constant: an entry above c still pulls."""


@dataclass(frozen=True, slots=True)
class RowConfig:
    """The settings of one row; see `opsd.trainer.loss.clipped_kl` for their meaning."""

    divergence: Divergence
    jsd_beta: float
    clip: Clip
    clip_value: float  # +inf where clip is NONE
    temperature: float


Choice = TypeVar("Choice", bound=StrEnum)


def _choice(kind: type[Choice], name: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(str(member)) for member in kind)
        raise LossArgumentError(f"{name} = {value!r}: must be one of {known}") from None


def row_config(
    divergence: str, jsd_beta: float, clip: str, clip_value: float | None, temperature: float
) -> RowConfig:
    """Checks the settings; raises `LossArgumentError` (a ValueError) that names the wrong one."""
    kind = _choice(Divergence, "divergence", divergence)
    mode = _choice(Clip, "clip", clip)
    if not (temperature > 0 and math.isfinite(temperature)):
        raise LossArgumentError(f"temperature = {temperature}: must be finite and above 0")
    if kind is Divergence.JSD and not 0 < jsd_beta < 1:
        raise LossArgumentError(
            f"jsd_beta = {jsd_beta}: must lie inside (0, 1); "
            "use forward_kl or reverse_kl for the limits"
        )
    if mode is Clip.NONE:
        return RowConfig(kind, jsd_beta, mode, math.inf, temperature)
    if clip_value is None or not clip_value > 0:
        raise LossArgumentError(
            f"clip_value = {clip_value}: clip={str(mode)!r} needs a value above 0, in nats"
        )
    return RowConfig(kind, jsd_beta, mode, float(clip_value), temperature)
