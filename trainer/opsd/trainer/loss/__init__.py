"""The clipped divergence between teacher and student over the whole vocabulary, with telemetry."""

from opsd.trainer.loss.api import (
    ClippedKL,
    TokenTelemetry,
    clipped_kl,
    clipped_kl_from_logits,
)
from opsd.trainer.loss.choose import Implementation, in_use, why_not_native
from opsd.trainer.loss.config import Clip, Divergence
from opsd.trainer.loss.parallel import VocabShard

__all__ = [
    "Clip",
    "ClippedKL",
    "Divergence",
    "Implementation",
    "TokenTelemetry",
    "VocabShard",
    "clipped_kl",
    "clipped_kl_from_logits",
    "in_use",
    "why_not_native",
]
