"""One optimisation step: sample, compare with the teacher, move."""

import hashlib
import time
from collections.abc import Callable

import torch

from opsd.trainer import failpoints
from opsd.trainer.data import load_shard
from opsd.trainer.distributed import Ranks
from opsd.trainer.epistemic import EpistemicTokens
from opsd.trainer.errors import NonFiniteError
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.loss import in_use
from opsd.trainer.model import BaseModel
from opsd.trainer.objective import Answer, Durations, Objective, StepSums
from opsd.trainer.prompts import Draws, PromptMaker, PromptPair
from opsd.trainer.rollout import sample_rollouts
from opsd.trainer.schedule import learning_rate
from opsd.v1 import training_pb2


class Stepper:
    """Everything that a step changes: LoRA weights, optimizer, place in the data, token count.

    Args:
        spec: checked, defaults filled in.
        ranks: the process group.
        base: the loaded model.
        on_progress: called at every point of progress within a step.
    """

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        ranks: Ranks,
        base: BaseModel,
        on_progress: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._ranks = ranks
        self._base = base
        self._on_progress = on_progress
        self.network = StudentTeacher(base, spec)
        self.maker = PromptMaker(
            base.tokenizer, spec.prompt, base.context_tokens - spec.rollout.max_new_tokens
        )
        self._epistemic = EpistemicTokens(base.tokenizer, spec.objective.epistemic_words)
        self.draws = Draws(load_shard(spec.shard), spec.seed, self.maker)
        self._objective = Objective(
            self.network,
            spec.objective,
            spec.rollout.temperature,
            spec.optim.micro_batch_size,
            on_progress,
        )
        self.weights = torch.nn.Parameter(self.network.student.weights_P, requires_grad=True)
        self.weights.grad = self.network.student.grad_P
        self.optimizer = torch.optim.AdamW(
            [self.weights],
            lr=spec.optim.learning_rate,
            betas=(spec.optim.adam_beta1, spec.optim.adam_beta2),
            eps=spec.optim.adam_eps,
            weight_decay=spec.optim.weight_decay,
            fused=True,
        )
        self.generated_tokens = 0

    def run(self, step: int) -> training_pb2.StepMetrics:
        """The step of this number, from 0; raises `NonFiniteError` before it would do harm."""
        began = time.perf_counter()
        durations = Durations()
        # Dropout's only source; from the step's number, so that no state of it is ever saved.
        torch.manual_seed(_dropout_seed(self._spec.seed, step, self._ranks.rank))
        assert self.weights.grad is not None
        self.weights.grad.zero_()

        prompts = self.draws.take(self._spec.optim.problems_per_step)
        answers = self._rollouts(step, prompts, durations)
        num_sequences = len(prompts) * self._spec.rollout.rollouts_per_problem
        sums = self._objective.accumulate(answers, num_sequences, durations)
        if failpoints.armed("nan-at-step", step):
            sums.loss = float("nan")

        waited = time.perf_counter()
        self._ranks.sum_(self.weights.grad)
        totals = sums.as_tensor(self._ranks.device)
        self._ranks.sum_(totals)
        sums = StepSums.from_tensor(totals)
        grad_norm, rate = self._move(step, sums)
        durations.backward_s += time.perf_counter() - waited
        self.generated_tokens += int(sums.tokens)
        return training_pb2.StepMetrics(
            loss=sums.loss / sums.tokens,
            divergence=sums.divergence / sums.tokens,
            clipped_fraction=_share(sums),
            student_entropy=sums.student_entropy / sums.tokens,
            teacher_entropy=sums.teacher_entropy / sums.tokens,
            grad_norm=grad_norm,
            learning_rate=rate,
            rollout_tokens_mean=sums.tokens / sums.sequences,
            truncated_fraction=sums.truncated / sums.sequences,
            generated_tokens=self.generated_tokens,
            step_s=time.perf_counter() - began,
            rollout_s=durations.rollout_s,
            forward_s=durations.forward_s,
            backward_s=durations.backward_s,
            loss_implementation=in_use(self._ranks.device.type),
            epistemic_fraction=sums.epistemic_tokens / sums.tokens,
            epistemic_divergence=sums.epistemic_divergence / max(sums.epistemic_tokens, 1.0),
        )

    def _rollouts(self, step: int, prompts: list[PromptPair], durations: Durations) -> list[Answer]:
        """Samples this rank's share: every world_size-th sequence of the step."""
        began = time.perf_counter()
        each = self._spec.rollout.rollouts_per_problem
        streams = range(self._ranks.rank, len(prompts) * each, self._ranks.world_size)
        mine = [prompts[stream // each] for stream in streams]
        if not mine:
            return []
        with self.network.rollout_network() as network:
            rollouts = sample_rollouts(
                network,
                [prompt.student_ids for prompt in mine],
                streams,
                self._spec.rollout,
                seed=self._spec.seed,
                step=step,
                eos_ids=self._base.eos_ids,
                pad_id=self._base.pad_id,
                on_token=self._on_progress,
            )
        durations.rollout_s += time.perf_counter() - began
        return [
            Answer(
                prompt.student_ids,
                prompt.teacher_ids,
                rollout.token_ids,
                rollout.truncated,
                tuple(self._epistemic.marks(rollout.token_ids)),
            )
            for prompt, rollout in zip(mine, rollouts, strict=True)
        ]

    def _move(self, step: int, sums: StepSums) -> tuple[float, float]:
        """Clips, checks and applies the summed gradient; returns its norm and the rate."""
        if sums.loss != sums.loss or abs(sums.loss) == float("inf"):
            raise NonFiniteError(step, "loss")
        assert self.weights.grad is not None
        norm = self.weights.grad.norm()
        grad_norm = float(norm)
        student = self.network.student
        if not bool(torch.isfinite(norm)):
            name = student.first_non_finite(self.weights.grad)
            raise NonFiniteError(step, f"the gradient of {name or 'the LoRA weights (its norm)'}")
        limit = self._spec.optim.max_grad_norm
        if limit > 0 and grad_norm > limit:
            self.weights.grad.mul_(limit / grad_norm)
        rate = learning_rate(self._spec.optim, step)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        name = student.first_non_finite(student.weights_P)
        if name is not None:
            raise NonFiniteError(step, f"{name} after the update")
        self.network.update_ema()
        return grad_norm, rate


def _share(sums: StepSums) -> float:
    if sums.positive_divergence <= 0:
        return 0.0
    return min(max((sums.divergence - sums.loss) / sums.positive_divergence, 0.0), 1.0)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    key = hashlib.sha256(f"dropout:{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(key[:7], "little")
