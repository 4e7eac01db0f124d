"""Every error that the trainer raises on purpose.

Each one subclasses `TrainerError` and the standard exception that a caller would expect, and keeps
its arguments in `args`, so that it survives pickling between ranks.
"""


class TrainerError(Exception):
    """Base of the trainer's own errors."""


class SpecError(TrainerError, ValueError):
    """A value in `run.json` is wrong: names the field, the value and the fix."""

    def __init__(self, field: str, value: object, fix: str) -> None:
        super().__init__(field, value, fix)
        self.field = field
        self.value = value
        self.fix = fix

    def __str__(self) -> str:
        return f"run.json: {self.field} = {self.value!r}: {self.fix}"


class ShardError(TrainerError, ValueError):
    """The training shard is missing, altered or malformed."""


class PromptError(TrainerError, ValueError):
    """The tokenizer cannot make the prompts, or no problem fits the model's context."""


class ModelError(TrainerError, ValueError):
    """The base model is missing, is not the one the spec names, or cannot be trained here."""


class AdapterError(TrainerError, ValueError):
    """An adapter on disk is malformed or does not match the spec."""


class CheckpointError(TrainerError, RuntimeError):
    """The checkpoints in the output directory cannot be resumed from."""


class LossArgumentError(TrainerError, ValueError):
    """An argument of `opsd.trainer.loss` is wrong; the message names it."""


class NativeUnavailableError(TrainerError, RuntimeError):
    """The compiled part was asked for and is not built."""


class NonFiniteError(TrainerError, ArithmeticError):
    """NaN or infinity in a tensor that training depends on."""

    def __init__(self, step: int, tensor: str) -> None:
        super().__init__(step, tensor)
        self.step = step
        self.tensor = tensor

    def __str__(self) -> str:
        return (
            f"step {self.step}: {self.tensor} is not finite; "
            "lower optim.learning_rate or set optim.max_grad_norm"
        )


class SupportError(TrainerError, RuntimeError):
    """The daemon that started the run cannot be reached, or refuses."""


class TeacherCheckError(TrainerError, RuntimeError):
    """The teacher cannot read its context, or what the context says does not matter."""


class SamplerError(TrainerError, RuntimeError):
    """The sampler cannot be started, cannot be reached, or refuses what it is asked."""


class SamplerMismatchError(TrainerError, RuntimeError):
    """What the sampler says of its tokens is not what the same weights say here."""

    def __init__(self, step: int, gap: float, bound: float, largest: float) -> None:
        super().__init__(step, gap, bound, largest)
        self.step = step
        self.gap = gap
        self.bound = bound
        self.largest = largest

    def __str__(self) -> str:
        return (
            f"step {self.step}: log-probabilities of the sampled tokens differ by {self.gap:.4g} "
            f"nats a token between sampler and trainer (the largest by {self.largest:.4g}), more "
            f"than rollout.max_logprob_gap = {self.bound:g}: the sampler runs other weights (a "
            "stale or foreign adapter, another base model), or another number format or LoRA "
            "scale; raise the bound only if both run the same weights"
        )


class RankDisagreementError(TrainerError, RuntimeError):
    """The ranks hold different LoRA weights."""


class PeerFailedError(TrainerError, RuntimeError):
    """Another rank of the process group failed first; carries its reason."""


class ClusterError(TrainerError, RuntimeError):
    """The Ray cluster is not there, lacks devices, or its machines do not fit together."""


class CancelledRun(TrainerError):
    """SIGTERM or SIGINT arrived."""
