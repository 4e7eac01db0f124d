"""The gradient of one step's objective over this rank's sequences.

    L = mean over sequences of (1 / |ŷ|) sum_n D(p_T(.|x, y*, ŷ<n), p_S(.|x, ŷ<n))

(arXiv 2601.18734), with the divergence D clipped as `opsd.trainer.loss` defines. The mean is over
all ranks' sequences: ranks add their gradients up.

Shape suffixes: B sequences of a micro-batch, L positions, T response tokens of a micro-batch,
D hidden size.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.loss import Clip, ClippedKL, Divergence, clipped_kl
from opsd.v1 import training_pb2

_DIVERGENCES = {
    training_pb2.DIVERGENCE_FORWARD_KL: Divergence.FORWARD_KL,
    training_pb2.DIVERGENCE_REVERSE_KL: Divergence.REVERSE_KL,
    training_pb2.DIVERGENCE_JSD: Divergence.JSD,
    training_pb2.DIVERGENCE_POLICY_GRADIENT: Divergence.POLICY_GRADIENT,
}
_CLIPS = {
    training_pb2.CLIP_MODE_NONE: Clip.NONE,
    training_pb2.CLIP_MODE_CLAMP: Clip.CLAMP,
    training_pb2.CLIP_MODE_SCALE: Clip.SCALE,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """One problem with its sampled answer."""

    student_prompt: tuple[int, ...]
    teacher_prompt: tuple[int, ...]
    response: tuple[int, ...]
    truncated: bool
    epistemic: tuple[bool, ...] = ()
    """For each token of the response whether it is of an epistemic word; empty: none is."""


@dataclass(slots=True)
class StepSums:
    """Sums over response tokens and sequences that the ranks add up into a step's metrics."""

    loss: float = 0.0
    divergence: float = 0.0
    positive_divergence: float = 0.0
    student_entropy: float = 0.0
    teacher_entropy: float = 0.0
    tokens: float = 0.0
    sequences: float = 0.0
    truncated: float = 0.0
    epistemic_tokens: float = 0.0
    epistemic_divergence: float = 0.0

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


class Objective:
    """Adds the gradient of the objective into the student's LoRA gradient.

    Args:
        network: student and teacher.
        objective: divergence and clip.
        temperature: of the rollouts; divides both logits in the loss.
        micro_batch_size: sequences in one forward pass.
        on_progress: called after every micro-batch.
    """

    def __init__(
        self,
        network: StudentTeacher,
        objective: training_pb2.ObjectiveSpec,
        temperature: float,
        micro_batch_size: int,
        on_progress: Callable[[], None],
    ) -> None:
        self._network = network
        self._divergence = _DIVERGENCES[objective.divergence]
        self._jsd_beta = objective.jsd_beta
        self._clip = _CLIPS[objective.clip_mode]
        self._clip_value = None if self._clip is Clip.NONE else objective.clip_value
        self._top_k = objective.top_k or None
        self._epistemic_weight = objective.epistemic_weight
        self._temperature = temperature
        self._micro_batch_size = micro_batch_size
        self._on_progress = on_progress

    def accumulate(
        self, sequences: Sequence[Answer], num_sequences: int, durations: Durations
    ) -> StepSums:
        """Forward and backward over the sequences of this rank.

        Args:
            sequences: of this rank.
            num_sequences: of the step over all ranks.
            durations: its forward and backward seconds are added to.
        """
        sums = StepSums(sequences=len(sequences), truncated=sum(s.truncated for s in sequences))
        # Neighbours of equal length waste no padding.
        ordered = sorted(sequences, key=lambda s: len(s.student_prompt) + len(s.response))
        for start in range(0, len(ordered), self._micro_batch_size):
            batch = ordered[start : start + self._micro_batch_size]
            began = time.perf_counter()
            marks_T = torch.tensor([mark for s in batch for mark in _marks(s)])
            out = self._loss(batch, marks_T, num_sequences)
            _add(sums, out, marks_T)
            forwarded = time.perf_counter()
            out.loss.backward()  # type: ignore[no-untyped-call]
            durations.forward_s += forwarded - began
            durations.backward_s += time.perf_counter() - forwarded
            self._on_progress()
        return sums

    def _loss(self, batch: Sequence[Answer], marks_T: Tensor, num_sequences: int) -> ClippedKL:
        device = self._network.head_weight_VD.device
        responses = [s.response for s in batch]
        teacher_TD = response_hidden_TD(
            self._network.teacher_hidden_BLD, [s.teacher_prompt for s in batch], responses, device
        )
        student_TD = response_hidden_TD(
            self._network.student_hidden_BLD, [s.student_prompt for s in batch], responses, device
        )
        weights_T = torch.tensor([1 / (len(r) * num_sequences) for r in responses for _ in r])
        weights_T = torch.where(marks_T, weights_T * self._epistemic_weight, weights_T)
        return clipped_kl(
            student_TD,
            teacher_TD,
            self._network.head_weight_VD,
            divergence=self._divergence,
            jsd_beta=self._jsd_beta,
            clip=self._clip,
            clip_value=self._clip_value,
            temperature=self._temperature,
            top_k=self._top_k,
            token_weight=weights_T.to(device),
            sampled_ids=torch.tensor([t for r in responses for t in r], device=device),
        )


def _marks(answer: Answer) -> tuple[bool, ...]:
    return answer.epistemic or (False,) * len(answer.response)


def _add(sums: StepSums, out: ClippedKL, marks_T: Tensor) -> None:
    telemetry = out.telemetry
    values = torch.stack(
        [
            telemetry.loss_T,
            telemetry.divergence_T,
            telemetry.positive_divergence_T,
            telemetry.student_entropy_T,
            telemetry.teacher_entropy_T,
        ]
    )
    loss, divergence, positive, student, teacher = values.double().sum(-1).tolist()
    sums.loss += loss
    sums.divergence += divergence
    sums.positive_divergence += positive
    sums.student_entropy += student
    sums.teacher_entropy += teacher
    sums.tokens += values.shape[1]
    sums.epistemic_tokens += int(marks_T.sum())
    marked_T = telemetry.divergence_T[marks_T.to(telemetry.divergence_T.device)]
    sums.epistemic_divergence += float(marked_T.double().sum())
