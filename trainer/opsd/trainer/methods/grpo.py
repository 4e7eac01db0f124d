"""Group-relative policy optimisation (GRPO, arXiv 2402.03300), without a reference penalty.

Of a group of attempts at one problem with verdicts r in {0, 1}, A = (r - mean) / (std + 1e-4), and

    L = -mean over sequences of (1 / |ŷ|) sum_n min(ρ_n A, clip(ρ_n, 1 - low, 1 + high) A)

with ρ_n = p_S(ŷ_n) / p_old(ŷ_n), which is 1 where the weights that sampled are those that train.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from opsd.trainer.attempts import Attempt, Outcomes, group_of
from opsd.trainer.data import Pair
from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods.answer import (
    Answer,
    StepSums,
    answer_of,
    response_ids,
    token_weights,
)
from opsd.trainer.methods.logprobs import (
    add_likelihood,
    student_hidden,
    token_likelihood,
    token_logprobs,
)
from opsd.v1 import training_pb2

_STD_FLOOR = 1e-4


class GroupRelativePolicy:
    """Args:
    network: its student trains.
    spec: of the run, defaults filled in.
    epistemic: counts words of doubt.
    """

    samples = True
    verifies = True
    has_teacher = False

    def __init__(
        self, network: StudentTeacher, spec: training_pb2.RunSpec, epistemic: EpistemicTokens
    ) -> None:
        self._network = network
        self._epistemic = epistemic
        self._group_size = spec.rollout.rollouts_per_problem
        self._temperature = spec.rollout.temperature
        self._may_be_stale = spec.rollout.max_staleness_steps > 0
        self._low = spec.objective.ratio_clip_low
        self._high = spec.objective.ratio_clip_high

    def answers(self, attempts: Sequence[Attempt], outcomes: Outcomes) -> list[Answer]:
        answers: list[Answer] = []
        for attempt in attempts:
            verdict = attempt.verdict
            # A verdict of error says nothing about the attempt.
            if verdict is None or verdict.is_error:
                continue
            group = [
                o.verdict.passed
                for o in group_of(attempt.stream, self._group_size, outcomes)
                if not o.verdict.is_error
            ]
            advantage = group_advantage(verdict.passed, group)
            if advantage == 0.0:
                continue
            # The clipped ratio corrects a stale attempt itself.
            answer = answer_of(attempt, self._epistemic, advantage=advantage)
            answers.append(replace(answer, importance=(), old_logprobs=attempt.old_logprobs))
        return answers

    def demonstrations(self, pairs: Sequence[Pair]) -> list[Answer]:
        raise AssertionError("GRPO samples")

    def loss(self, batch: Sequence[Answer], num_sequences: int, sums: StepSums) -> Tensor:
        head, device = self._network.head, self._network.device
        ids_T = response_ids(batch, device)
        hidden_TD = student_hidden(self._network, batch)
        advantage_T = torch.tensor([a.advantage for a in batch for _ in a.response], device=device)
        slope_T, surrogate_T = advantage_T, advantage_T
        # Not whether this batch is stale: ranks that share a head must do the same.
        if self._may_be_stale:
            logp_T = token_logprobs(hidden_TD, head, ids_T, self._temperature)
            old = [
                logprob
                for a, now in zip(batch, _split(logp_T, batch), strict=True)
                for logprob in (a.old_logprobs or now)
            ]
            slope_T, surrogate_T = clipped_ratio(
                logp_T, torch.tensor(old, device=device), advantage_T, self._low, self._high
            )
        weights_T = token_weights(batch, num_sequences).to(device)
        out = token_likelihood(hidden_TD, head, ids_T, weights_T * slope_T, self._temperature)
        add_likelihood(sums, out, batch, -surrogate_T)
        return out.loss


def group_advantage(passed: bool, group: Sequence[bool]) -> float:
    """(r - mean) / (std + 1e-4) over the group's verdicts; 0 where they are all the same."""
    mean = sum(group) / len(group)
    std = math.sqrt(mean * (1 - mean))
    return 0.0 if std == 0 else (passed - mean) / (std + _STD_FLOOR)


def clipped_ratio(
    logp_T: Tensor, old_T: Tensor, advantage_T: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """The surrogate min(ρA, clip(ρ)A), [T], and the weight of ∇log p in its gradient, [T].

    Where the clipped side is the smaller one the gradient is 0; elsewhere it is ρA.
    """
    ratio_T = (logp_T - old_T).exp()
    plain_T = ratio_T * advantage_T
    clipped_T = ratio_T.clamp(1 - low, 1 + high) * advantage_T
    slope_T = torch.where(clipped_T < plain_T, 0.0, plain_T)
    return slope_T, torch.minimum(plain_T, clipped_T)


def _split(values_T: Tensor, batch: Sequence[Answer]) -> list[list[float]]:
    parts = torch.split(values_T, [len(answer.response) for answer in batch])
    return [part.tolist() for part in parts]
