"""One optimisation step: sample, compare with the teacher, move."""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable

import torch

from opsd.trainer import failpoints
from opsd.trainer.attempts import Outcomes, shared_outcomes, verified
from opsd.trainer.audited_steps import AuditedSteps
from opsd.trainer.curriculum import Curriculum
from opsd.trainer.data import Pair, load_shard
from opsd.trainer.distributed import Ranks
from opsd.trainer.draws import Draws
from opsd.trainer.errors import NonFiniteError
from opsd.trainer.lora import StudentTeacher
from opsd.trainer.loss import in_use
from opsd.trainer.methods import Answer, Durations, StepSums, make_method
from opsd.trainer.methods.accumulate import accumulate
from opsd.trainer.methods.distil import DistilledBatch
from opsd.trainer.model import BaseModel
from opsd.trainer.prompts import PromptMaker
from opsd.trainer.sampling import StudentSampling
from opsd.trainer.schedule import learning_rate
from opsd.trainer.support import Support
from opsd.trainer.teacher_probe import TeacherProbe
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
        self.maker = PromptMaker(base.tokenizer, spec, base.context_tokens)
        self.method = make_method(spec, self.network, base, self.maker, on_progress, self._look_at)
        self.support: Support | None = None
        if spec.support.address:
            self.support = Support(spec.support.address, spec.run_id)
        pairs = load_shard(spec.shard)
        self.curriculum = Curriculum(spec.curriculum, pairs, spec.seed)
        self.draws = Draws(pairs, spec.seed, self.curriculum, self._is_usable)
        self.probe = TeacherProbe(self.network, base, spec, self.maker, on_progress)
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
        self.sampling = StudentSampling(spec, ranks, base, self.network, self.maker, on_progress)
        self.audited: AuditedSteps | None = None
        """Set once it is known where the run goes on."""
        self.generated_tokens = 0
        self.num_skipped = 0
        self._drawn: tuple[int, list[Pair]] | None = None

    def run(self, step: int) -> training_pb2.StepMetrics:
        """The step of this number, from 0.

        A step whose loss or gradient is not finite changes nothing and is counted; one more than
        `optim.max_skipped_steps` of them raises `NonFiniteError`.
        """
        began = time.perf_counter()
        durations = Durations()
        # Dropout's only source; from the step's number, so that no state of it is ever saved.
        torch.manual_seed(_dropout_seed(self._spec.seed, step, self._ranks.rank))
        assert self.weights.grad is not None
        self.weights.grad.zero_()

        epoch, pairs = self._drawn or self._draw()
        self._drawn = None
        metrics = training_pb2.StepMetrics(loss_implementation=in_use(self._ranks.device.type))
        with self.network.gathered() if self._samples_here else contextlib.nullcontext():
            answers = self._answers(step, epoch, pairs, durations, metrics)
        trained = int(self._sum(len(answers)))
        if self.audited is not None:
            self.audited.begin(step, answers)
        sums = accumulate(
            self.method,
            answers,
            max(trained, 1),
            micro_batch_size=self._spec.optim.micro_batch_size,
            durations=durations,
            on_progress=self._on_progress,
            lockstep=self.network.lockstep,
        )
        if self.audited is not None:
            self.audited.end(step)
        if failpoints.armed("nan-at-step", step):
            sums.loss = float("nan")

        waited = time.perf_counter()
        self._ranks.sum_(self.weights.grad)
        totals = sums.as_tensor(self._ranks.device)
        self._ranks.sum_(totals)
        sums = StepSums.from_tensor(totals)
        metrics.learning_rate = learning_rate(self._spec.optim, step)
        if trained:
            self._move_or_skip(step, sums, metrics)
        durations.backward_s += time.perf_counter() - waited
        _fill(metrics, sums, durations, trained)
        metrics.generated_tokens = self.generated_tokens
        metrics.step_s = time.perf_counter() - began
        return metrics

    def close(self) -> None:
        """Frees the sampler and ends the connection to the daemon."""
        self.sampling.close()
        if self.support is not None:
            self.support.close()

    def _answers(
        self,
        step: int,
        epoch: int,
        pairs: list[Pair],
        durations: Durations,
        metrics: training_pb2.StepMetrics,
    ) -> list[Answer]:
        """What this rank trains on; tells `metrics` of the attempts."""
        if not self.method.samples:
            mine = pairs[self._ranks.rank :: self._ranks.world_size]
            answers = self.method.demonstrations(mine)
            metrics.trained_fraction = self._sum(len(answers)) / len(pairs)
            return answers
        began = time.perf_counter()
        sampled = self.sampling.sample(step, pairs, version=step)
        attempts = sampled.attempts
        metrics.sampler_logprob_gap = sampled.logprob_gap
        metrics.staleness_steps = sampled.staleness_steps
        self._look_ahead(step)
        durations.rollout_s += time.perf_counter() - began
        tokens = self._sum(sum(len(a.rollout.token_ids) for a in attempts))
        truncated = self._sum(sum(a.rollout.truncated for a in attempts))
        num_attempts = len(pairs) * self._spec.rollout.rollouts_per_problem
        self.generated_tokens += int(tokens)
        metrics.rollout_tokens_mean = tokens / num_attempts
        metrics.truncated_fraction = truncated / num_attempts
        outcomes: Outcomes = {}
        if self.method.verifies or self.curriculum.enabled:
            assert self.support is not None, "checked with the spec"
            began = time.perf_counter()
            attempts = verified(attempts, self.support)
            outcomes = shared_outcomes(attempts, self._ranks)
            self._learn_rates(step, epoch, pairs, outcomes)
            durations.rollout_s += time.perf_counter() - began
            solved = sum(outcome.verdict.passed for outcome in outcomes.values())
            metrics.solved_fraction = solved / num_attempts
        answers = self.method.answers(attempts, outcomes)
        metrics.trained_fraction = self._sum(len(answers)) / num_attempts
        return answers

    @property
    def _samples_here(self) -> bool:
        """Whether this process samples, student or teacher, with the whole of a sharded base.

        Else ranks only compare a sampler's log-probabilities, and make as many passes for that.
        """
        return self.method.samples and (
            self._spec.rollout.sampler == training_pb2.SAMPLER_LOCAL
            or self._spec.prompt.reason_first_tokens > 0
            or self._spec.curriculum.enabled
        )

    def _draw(self) -> tuple[int, list[Pair]]:
        """The next step's problems, and in which pass over the shard they are drawn."""
        return self.draws.epoch, self.draws.take(self._spec.optim.problems_per_step)

    def _look_ahead(self, step: int) -> None:
        """Begins the next step's attempts, but not across a checkpoint: a resumed run has to
        sample what an undisturbed one would."""
        every = self._spec.checkpoint_every_steps
        ends = step + 1 == self._spec.optim.num_steps or (every and (step + 1) % every == 0)
        if self.sampling.looks_ahead and not ends:
            self._drawn = self._draw()
            self.sampling.look_ahead(step + 1, self._drawn[1], version=step)

    def _learn_rates(self, step: int, epoch: int, pairs: list[Pair], outcomes: Outcomes) -> None:
        for outcome in outcomes.values():
            if not outcome.verdict.is_error:
                self.curriculum.record(outcome.pair_id, outcome.verdict.passed, epoch)
        if not self.method.has_teacher:
            return
        doubtful = {p.id: p for p in pairs if self.curriculum.needs_teacher(p.id)}
        assert self.support is not None
        asked = self.probe.solves(list(doubtful.values()), self.support, step, self._ranks)
        for pair_id, solved in asked:
            self.curriculum.record_teacher(pair_id, solved, epoch)

    def _is_usable(self, pair: Pair) -> bool:
        if self.maker.student_ids(pair) is None:
            return False
        if not self.method.has_teacher or self.method.verifies:
            return True
        return self.maker.teacher_ids(pair) is not None

    def _look_at(self, batch: DistilledBatch) -> None:
        if self.audited is not None:
            self.audited.look_at(batch)

    def _move_or_skip(self, step: int, sums: StepSums, metrics: training_pb2.StepMetrics) -> None:
        """Applies the summed gradient, or leaves everything as it is where it is not finite."""
        try:
            metrics.grad_norm = self._finite_norm(sums, step)
        except NonFiniteError:
            self.num_skipped += 1
            if self.num_skipped > self._spec.optim.max_skipped_steps:
                raise
            metrics.skipped = True
            return
        assert self.weights.grad is not None
        limit = self._spec.optim.max_grad_norm
        if limit > 0 and metrics.grad_norm > limit:
            self.weights.grad.mul_(limit / metrics.grad_norm)
        self.optimizer.param_groups[0]["lr"] = metrics.learning_rate
        self.optimizer.step()
        student = self.network.student
        name = student.first_non_finite(student.weights_P)
        if name is not None:
            raise NonFiniteError(step, f"{name} after the update")
        self.network.update_ema()

    def _finite_norm(self, sums: StepSums, step: int) -> float:
        if not math.isfinite(sums.loss):
            raise NonFiniteError(step, "loss")
        assert self.weights.grad is not None
        norm = self.weights.grad.norm()
        if not bool(torch.isfinite(norm)):
            name = self.network.student.first_non_finite(self.weights.grad)
            raise NonFiniteError(step, f"the gradient of {name or 'the LoRA weights (its norm)'}")
        return float(norm)

    def _sum(self, value: float) -> float:
        """Over the ranks."""
        total = torch.tensor([value], dtype=torch.float64, device=self._ranks.device)
        self._ranks.sum_(total)
        return float(total)


def _fill(
    metrics: training_pb2.StepMetrics, sums: StepSums, durations: Durations, trained: int
) -> None:
    tokens = max(sums.tokens, 1.0)
    metrics.rollout_s = durations.rollout_s
    metrics.forward_s = durations.forward_s
    metrics.backward_s = durations.backward_s
    if metrics.skipped or not trained:
        return  # NaN would be no number for the record
    metrics.loss = sums.loss / tokens
    metrics.divergence = sums.divergence / tokens
    metrics.clipped_fraction = _share(sums)
    metrics.student_entropy = sums.student_entropy / tokens
    metrics.teacher_entropy = sums.teacher_entropy / tokens
    metrics.epistemic_fraction = sums.epistemic_tokens / tokens
    metrics.epistemic_divergence = sums.epistemic_divergence / max(sums.epistemic_tokens, 1.0)
    metrics.anchor_divergence = sums.anchor_divergence / tokens


def _share(sums: StepSums) -> float:
    if sums.positive_divergence <= 0:
        return 0.0
    return min(max((sums.divergence - sums.loss) / sums.positive_divergence, 0.0), 1.0)


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    key = hashlib.sha256(f"dropout:{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(key[:7], "little")
