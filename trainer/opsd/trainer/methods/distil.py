"""Distillation from the model that reads more: OPSD, SDFT and SDPO differ in what it reads.

    L = mean over sequences of (1 / |ŷ|) sum_n D(p_T(.|x, c, ŷ<n), p_S(.|x, ŷ<n))

with the divergence D clipped as `opsd.trainer.loss` defines, and c the context: the solution
(OPSD, arXiv 2601.18734), a demonstration (SDFT), or a correct attempt of the student's own and the
verifier's feedback (SDPO).

Shape suffixes: T response tokens of a micro-batch, D hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opsd.trainer.attempts import Attempt, Outcomes
from opsd.trainer.data import Pair
from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.loss import Clip, ClippedKL, Divergence
from opsd.trainer.methods.answer import (
    IDLE,
    Answer,
    StepSums,
    answer_of,
    response_ids,
    token_weights,
)
from opsd.trainer.methods.materials import Materials
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.reasoning import Reasoner
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
class DistilledBatch:
    """What an onlooker sees of a micro-batch."""

    answers: Sequence[Answer]
    student_TD: Tensor
    teacher_TD: Tensor
    weights_T: Tensor
    """Of each token in the mean over its sequence, shielding included; 1 is usual."""
    out: ClippedKL


class Distillation:
    """Pulls the student to the teacher's whole distribution along the student's own attempts.

    Args:
        network: student and teacher.
        spec: of the run, defaults filled in.
        maker: of the teacher's prompts.
        reasoner: what the teacher writes first, where it does.
        epistemic: finds the tokens that may be shielded.
        onlooker: told of every micro-batch.
    """

    samples = True
    has_teacher = True

    def __init__(
        self,
        network: StudentTeacher,
        spec: training_pb2.RunSpec,
        maker: PromptMaker,
        reasoner: Reasoner | None,
        epistemic: EpistemicTokens,
        onlooker: Callable[[DistilledBatch], None] | None = None,
    ) -> None:
        objective = spec.objective
        self._network = network
        self._maker = maker
        self._reasoner = reasoner
        self._epistemic = epistemic
        self._onlooker = onlooker
        self._materials = Materials(spec)
        self._divergence = _DIVERGENCES[objective.divergence]
        self._jsd_beta = objective.jsd_beta
        self._clip = _CLIPS[objective.clip_mode]
        self._clip_value = None if self._clip is Clip.NONE else objective.clip_value
        self._top_k = objective.top_k or None
        self._epistemic_weight = objective.epistemic_weight
        self._anchor_weight = objective.anchor_weight
        self._temperature = spec.rollout.temperature

    @property
    def verifies(self) -> bool:
        return self._materials.are_needed

    def answers(self, attempts: Sequence[Attempt], outcomes: Outcomes) -> list[Answer]:
        prompts = [
            self._maker.teacher_ids(attempt.pair, self._materials.of(attempt, outcomes))
            for attempt in attempts
        ]
        usable = [(a, ids) for a, ids in zip(attempts, prompts, strict=True) if ids is not None]
        teacher_ids = [ids for _, ids in usable]
        if self._reasoner is not None:
            teacher_ids = self._reasoner.extend(teacher_ids)
        return [
            answer_of(attempt, self._epistemic, teacher_prompt=ids)
            for (attempt, _), ids in zip(usable, teacher_ids, strict=True)
        ]

    def foreign_prompts(
        self, attempts: Sequence[Attempt], outcomes: Outcomes
    ) -> dict[int, tuple[int, ...]]:
        """For each stream what the teacher would read if told another problem's context."""
        found: dict[int, tuple[int, ...]] = {}
        for index, attempt in enumerate(attempts):
            for other in (*attempts[index + 1 :], *attempts[:index]):
                if other.pair.id == attempt.pair.id:
                    continue
                material = self._materials.of(other, outcomes)
                ids = self._maker.teacher_ids(attempt.pair, material, source=other.pair)
                if ids is not None:
                    found[attempt.stream] = ids
                    break
        if self._reasoner is None:
            return found
        return dict(zip(found, self._reasoner.extend(list(found.values())), strict=True))

    def demonstrations(self, pairs: Sequence[Pair]) -> list[Answer]:
        raise AssertionError("distillation is on-policy: it samples")

    def loss(self, batch: Sequence[Answer], num_sequences: int, sums: StepSums) -> Tensor:
        device = self._network.device
        responses = [answer.response for answer in batch]
        teacher_TD = response_hidden_TD(
            self._network.teacher_hidden_BLD, [a.teacher_prompt for a in batch], responses, device
        )
        student_TD = response_hidden_TD(
            self._network.student_hidden_BLD, [a.student_prompt for a in batch], responses, device
        )
        marks_T = torch.tensor([mark for a in batch for mark in _marks(a)])
        shield_T = torch.where(marks_T, self._epistemic_weight, 1.0)
        mean_T = token_weights(batch, num_sequences)
        out = self._network.head.clipped_kl(
            student_TD,
            teacher_TD,
            divergence=self._divergence,
            jsd_beta=self._jsd_beta,
            clip=self._clip,
            clip_value=self._clip_value,
            temperature=self._temperature,
            top_k=self._top_k,
            token_weight=(mean_T * shield_T).to(device),
            sampled_ids=response_ids(batch, device),
        )
        _add(sums, out, marks_T)
        if self._onlooker is not None and batch[0] is not IDLE:
            self._onlooker(
                DistilledBatch(
                    batch,
                    student_TD.detach(),
                    teacher_TD,
                    shield_T,
                    out,
                )
            )
        if not self._anchor_weight:
            return out.loss
        return out.loss + self._anchor(batch, mean_T.to(device), sums)

    def _anchor(self, batch: Sequence[Answer], mean_T: Tensor, sums: StepSums) -> Tensor:
        """KL(base || student) where both read the teacher's prompt."""
        device = self._network.device
        prompts = [answer.teacher_prompt for answer in batch]
        responses = [answer.response for answer in batch]
        base_TD = response_hidden_TD(self._network.base_hidden_BLD, prompts, responses, device)
        student_TD = response_hidden_TD(
            self._network.student_hidden_BLD, prompts, responses, device
        )
        out = self._network.head.clipped_kl(
            student_TD,
            base_TD,
            temperature=self._temperature,
            token_weight=mean_T * self._anchor_weight,
        )
        sums.anchor_divergence += float(out.telemetry.divergence_T.double().sum())
        return out.loss


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
