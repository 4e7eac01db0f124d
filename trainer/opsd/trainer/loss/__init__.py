"""The clipped divergence between teacher and student over the whole vocabulary, with telemetry."""

from opsd.trainer.loss.api import (
    ClippedKL,
    TokenTelemetry,
    clipped_kl,
    clipped_kl_from_logits,
)
from opsd.trainer.loss.config import Clip, Divergence
from opsd.trainer.loss.native import is_available as native_is_available

__all__ = [
    "Clip",
    "ClippedKL",
    "Divergence",
    "TokenTelemetry",
    "clipped_kl",
    "clipped_kl_from_logits",
    "native_is_available",
]
