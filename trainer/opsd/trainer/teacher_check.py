"""Before the first step: can the teacher read its context, and does it matter what that says?

Of some problems the student makes attempts without and the teacher with its context, and both are
verified. On the student's attempts the teacher's distributions are compared under the problem's own
context and under another problem's: a teacher that says the same under both pulls to style only.
"""

from collections.abc import Sequence

import torch

from opsd.trainer.attempts import attempt_texts, shared_outcomes, verified
from opsd.trainer.distributed import Ranks
from opsd.trainer.errors import TeacherCheckError
from opsd.trainer.forward import response_hidden_TD
from opsd.trainer.methods import Answer
from opsd.trainer.methods.distil import Distillation
from opsd.trainer.model import BaseModel
from opsd.trainer.step import Stepper
from opsd.v1 import training_pb2

_STEP = (1 << 32) - 1  # random numbers of no step of training


def check_teacher(
    spec: training_pb2.RunSpec, stepper: Stepper, base: BaseModel, ranks: Ranks
) -> training_pb2.TeacherCheckReport:
    """Measures, and says whether the run should go on; `report.passed` tells.

    Args:
        spec: with teacher_check.num_problems above 0 and a method that has a teacher.
        stepper: not yet used.
        base: the loaded model.
        ranks: the process group.
    """
    method = stepper.method
    assert isinstance(method, Distillation), "checked with the spec"
    assert stepper.support is not None, "checked with the spec"
    count = min(spec.teacher_check.num_problems, spec.shard.num_pairs)
    pairs = stepper.draws.take(count)
    stepper.draws.seek(0)
    sampled = stepper.sampling.sample(_STEP, pairs, version=0)
    attempts = verified(sampled.attempts, stepper.support)
    outcomes = shared_outcomes(attempts, ranks)
    answers = method.answers(attempts, outcomes)
    by_id = {pair.id: pair for pair in pairs}
    teacher = stepper.probe.sample(
        [a.teacher_prompt for a in answers], [a.stream for a in answers], _STEP
    )
    texts = attempt_texts(base.tokenizer, teacher)
    verdicts = stepper.support.verify(
        [
            (by_id[a.pair_id].verifier, by_id[a.pair_id].reference, text)
            for a, text in zip(answers, texts, strict=True)
        ]
    )
    foreign = method.foreign_prompts(attempts, outcomes)
    sums = _divergences(
        stepper, [(a, foreign[a.stream]) for a in answers if a.stream in foreign], spec
    )
    sums += [
        sum(v.passed for v in verdicts),
        sum(a.verdict is not None and a.verdict.passed for a in attempts),
        len(answers),
        len(attempts),
    ]
    totals = torch.tensor(sums, dtype=torch.float64, device=ranks.device)
    ranks.sum_(totals)
    own, other, content, tokens, with_, without, num_answers, num_attempts = totals.tolist()
    report = training_pb2.TeacherCheckReport(
        num_problems=len(pairs),
        accuracy_with=with_ / max(num_answers, 1),
        accuracy_without=without / max(num_attempts, 1),
        divergence_true=own / max(tokens, 1),
        divergence_other=other / max(tokens, 1),
        content_divergence=content / max(tokens, 1),
    )
    judge(report, spec.teacher_check, num_answers)
    return report


def judge(
    report: training_pb2.TeacherCheckReport,
    spec: training_pb2.TeacherCheckSpec,
    num_answers: float,
) -> None:
    """Fills in `passed` and `explanation` from the report's numbers.

    Args:
        report: measured.
        spec: the thresholds.
        num_answers: attempts that the teacher had a context for.
    """
    numbers = (
        f"on {report.num_problems} problems, accuracy {report.accuracy_with:.1%} with the context "
        f"and {report.accuracy_without:.1%} without; KL(teacher || student) "
        f"{report.divergence_true:.4f} nats a token under the true context, "
        f"{report.divergence_other:.4f} under another problem's; KL between the two teachers "
        f"{report.content_divergence:.4f}"
    )
    gain = report.accuracy_with - report.accuracy_without
    share = report.content_divergence / max(report.divergence_true, 1e-9)
    report.passed = False
    if num_answers == 0:
        report.explanation = f"the teacher had nothing to read ({numbers})"
    elif gain < spec.min_gain and report.accuracy_without < 1 - spec.min_gain:
        report.explanation = (
            f"the teacher cannot make use of its context: it gains {gain:+.1%}, at least "
            f"{spec.min_gain:+.1%} is asked for ({numbers}); look at the solutions, the "
            "teacher_template and the sections, or lower teacher_check.min_gain"
        )
    elif share < spec.min_content_share:
        report.explanation = (
            f"the signal is style only: what the context says makes up {share:.1%} of it, at least "
            f"{spec.min_content_share:.1%} is asked for ({numbers}); look at the solutions and the "
            "teacher_template, or lower teacher_check.min_content_share"
        )
    else:
        report.passed = True
        report.explanation = numbers


def require_passed(report: training_pb2.TeacherCheckReport) -> None:
    """Raises `TeacherCheckError` with the numbers of a report that did not pass."""
    if not report.passed:
        raise TeacherCheckError(report.explanation)


@torch.no_grad()
def _divergences(
    stepper: Stepper, answers: Sequence[tuple[Answer, tuple[int, ...]]], spec: training_pb2.RunSpec
) -> list[float]:
    """Token sums of KL(own || student), KL(other || student), KL(own || other); tokens."""
    network = stepper.network
    sums = [0.0, 0.0, 0.0, 0.0]
    size = spec.optim.micro_batch_size
    for batch in (answers[start : start + size] for start in range(0, len(answers), size)):
        responses = [answer.response for answer, _ in batch]
        own_TD, other_TD, student_TD = (
            response_hidden_TD(function, prompts, responses, network.device)
            for function, prompts in (
                (network.teacher_hidden_BLD, [answer.teacher_prompt for answer, _ in batch]),
                (network.teacher_hidden_BLD, [other for _, other in batch]),
                (network.sampled_hidden_BLD, [answer.student_prompt for answer, _ in batch]),
            )
        )
        for index, (left_TD, right_TD) in enumerate(
            ((own_TD, student_TD), (other_TD, student_TD), (own_TD, other_TD))
        ):
            out = network.head.clipped_kl(right_TD, left_TD, temperature=spec.rollout.temperature)
            sums[index] += float(out.telemetry.divergence_T.double().sum())
        sums[3] += len(own_TD)
    return sums
