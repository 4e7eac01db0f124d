"""The objectives of the family, each over the same attempts, model and loss, chosen by name."""

from opsd.trainer.methods.answer import Answer, Durations, StepSums
from opsd.trainer.methods.base import Method
from opsd.trainer.methods.choose import make_method

__all__ = ["Answer", "Durations", "Method", "StepSums", "make_method"]
