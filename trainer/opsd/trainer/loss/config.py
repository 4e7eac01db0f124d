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
    """beta KL(p_T || m) + (1 - beta) KL(p_S || m) with m = beta p_T + (1 - beta) p_S; beta = 0
    means forward_kl and beta = 1 reverse_kl, as in generalised knowledge distillation (arXiv
    2306.13649)."""
    POLICY_GRADIENT = "policy_gradient"
    """log(p_S / p_T) of the sampled token alone, an unbiased estimate of the reverse KL, as the
    weight of the policy gradient of log p_S: cheap, and noisy."""


class Clip(StrEnum):
    """How the share e[v] of one vocabulary entry in the divergence is bounded by c.

    For the policy gradient both bound the weight of the sampled token to [-c, c].
    """

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
    softcap: float = 0.0  # 0: none
    top_k: int = 0  # 0: the whole vocabulary

    def arguments(self) -> tuple[str, float, str, float, float, float]:
        """All but `top_k`, as the operators take them."""
        kind, mode = str(self.divergence), str(self.clip)
        return (kind, self.jsd_beta, mode, self.clip_value, self.temperature, self.softcap)


Choice = TypeVar("Choice", bound=StrEnum)


def _choice(kind: type[Choice], name: str, value: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(repr(str(member)) for member in kind)
        raise LossArgumentError(f"{name} = {value!r}: must be one of {known}") from None


def _expect_number(name: str, value: object) -> None:
    if not isinstance(value, int | float):
        raise LossArgumentError(f"{name} = {value!r}: must be a number")


def expect_whole(name: str, value: object) -> None:
    """Raises for what is no whole number from 1."""
    if not isinstance(value, int) or value < 1:
        raise LossArgumentError(f"{name} = {value!r}: must be a whole number from 1, or None")


def row_config(
    divergence: str,
    jsd_beta: float,
    clip: str,
    clip_value: float | None,
    temperature: float,
    softcap: float | None = None,
    top_k: int | None = None,
) -> RowConfig:
    """Checks the settings; raises `LossArgumentError` (a ValueError) that names the wrong one."""
    _expect_number("jsd_beta", jsd_beta)
    _expect_number("temperature", temperature)
    for name, value in (("clip_value", clip_value), ("softcap", softcap)):
        if value is not None:
            _expect_number(name, value)
    kind = _choice(Divergence, "divergence", divergence)
    mode = _choice(Clip, "clip", clip)
    # Comparisons, not math.isfinite, which torch.compile cannot follow with a number that changes.
    if not 1e-6 <= temperature <= 1e6:
        raise LossArgumentError(
            f"temperature = {temperature}: must be finite and above 0 (from 1e-6 to 1e6)"
        )
    if kind is Divergence.JSD:
        if not 0 <= jsd_beta <= 1:
            raise LossArgumentError(f"jsd_beta = {jsd_beta}: must lie in [0, 1]")
        if jsd_beta in (0, 1):
            kind = Divergence.FORWARD_KL if jsd_beta == 0 else Divergence.REVERSE_KL
    if softcap is not None and not 1e-6 <= softcap <= 1e30:
        raise LossArgumentError(
            f"softcap = {softcap}: must be finite and above 0 (from 1e-6 to 1e30), or None"
        )
    if top_k is not None:
        expect_whole("top_k", top_k)
    if top_k is not None and kind is Divergence.POLICY_GRADIENT:
        raise LossArgumentError(
            f"top_k = {top_k}: the policy gradient looks at the sampled token only; leave it out"
        )
    bound = math.inf
    if mode is not Clip.NONE:
        if clip_value is None or not clip_value >= 1e-30:
            raise LossArgumentError(
                f"clip_value = {clip_value}: clip={str(mode)!r} needs a value above 0, in "
                "nats (from 1e-30)"
            )
        bound = float(clip_value)
    elif clip_value is not None and not clip_value > 0:
        raise LossArgumentError(f"clip_value = {clip_value}: must be above 0, in nats, or None")
    return RowConfig(
        kind, float(jsd_beta), mode, bound, float(temperature), softcap or 0.0, top_k or 0
    )
