"""What a method trains on, and what a step adds up."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opsd.trainer.attempts import Attempt
from opsd.trainer.epistemic import EpistemicTokens


@dataclass(frozen=True, slots=True)
class Answer:
    """One problem with the response that is trained on."""

    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    """Empty where the method has no teacher."""
    response: tuple[int, ...]
    truncated: bool
    epistemic: tuple[bool, ...] = ()
    """For each token of the response whether it is of an epistemic word; empty: none is."""
    pair_id: str = ""
    stream: int = 0
    """Of the attempt that it was made of."""
    advantage: float = 1.0
    """Weight of the response in a policy gradient."""
    old_logprobs: tuple[float, ...] = ()
    """log p of each token under the weights that sampled it, nats, at the loss's temperature;
    empty: they are the weights that train."""
    importance: tuple[float, ...] = ()
    """Weight of each token that corrects for a sampler with older weights; empty: 1."""
    passed: bool | None = None
    evidence: str = ""


IDLE = Answer((0,), (0,), (0,), truncated=False, advantage=0.0, importance=(0.0,))
"""Work of no weight, for a rank that has none left while the others go on."""


def answer_of(
    attempt: Attempt,
    epistemic: EpistemicTokens,
    *,
    teacher_prompt: tuple[int, ...] = (),
    advantage: float = 1.0,
) -> Answer:
    """The attempt as it is trained on, its words of doubt found."""
    response = attempt.rollout.token_ids
    return Answer(
        attempt.prompt,
        teacher_prompt,
        response,
        attempt.rollout.truncated,
        tuple(epistemic.marks(response)),
        pair_id=attempt.pair.id,
        stream=attempt.stream,
        advantage=advantage,
        importance=attempt.importance,
        passed=None if attempt.verdict is None else attempt.verdict.passed,
        evidence="" if attempt.verdict is None else attempt.verdict.evidence,
    )


@dataclass(slots=True)
class StepSums:
    """Sums over response tokens and sequences that the ranks add up into a step's metrics."""

    loss: float = 0.0
    divergence: float = 0.0
    positive_divergence: float = 0.0
    student_entropy: float = 0.0
    teacher_entropy: float = 0.0
    tokens: float = 0.0
    epistemic_tokens: float = 0.0
    epistemic_divergence: float = 0.0
    anchor_divergence: float = 0.0

    def as_tensor(self, device: torch.device) -> Tensor:
        """fp64, in the order of the fields."""
        values = [getattr(self, field.name) for field in fields(self)]
        return torch.tensor(values, dtype=torch.float64, device=device)

    @classmethod
    def from_tensor(cls, values: Tensor) -> "StepSums":
        """The inverse of `as_tensor`."""
        return cls(*values.tolist())


@dataclass(slots=True)
class Durations:
    """Wall-clock seconds of a step's parts."""

    rollout_s: float = 0.0
    forward_s: float = 0.0
    backward_s: float = 0.0


def response_ids(batch: Sequence[Answer], device: torch.device) -> Tensor:
    """[T] int64, the batch's response tokens in order."""
    return torch.tensor([token for a in batch for token in a.response], device=device)


def token_weights(batch: Sequence[Answer], num_sequences: int) -> Tensor:
    """[T] fp32 on the CPU: 1 / |ŷ| and 1 / sequences of the step, times the importance."""
    return torch.tensor(
        [
            weight / (len(a.response) * num_sequences)
            for a in batch
            for weight in (a.importance or (1.0,) * len(a.response))
        ]
    )
