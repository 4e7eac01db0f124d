"""Which attempts of a step the token audit looks at, and when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opsd.trainer.methods import Answer
from opsd.trainer.methods.distil import DistilledBatch
from opsd.trainer.token_audit import FILE_NAME, AuditedSequence, TokenAudit, TokenSignals
from opsd.v1 import training_pb2


class AuditedSteps:
    """The first attempts of rank 0 in every so many steps of a method that has a teacher.

    Args:
        spec: of the run, defaults filled in.
        tokenizer: of the model.
        rank: of this process.
        steps_done: by the checkpoint that the run goes on from.
    """

    def __init__(
        self, spec: training_pb2.RunSpec, tokenizer: Any, rank: int, steps_done: int
    ) -> None:
        self._audit = TokenAudit(
            spec.token_audit,
            tokenizer,
            Path(spec.output_dir) / FILE_NAME if rank == 0 else None,
            temperature=spec.rollout.temperature,
            steps_done=steps_done,
        )
        self._places: dict[int, int] = {}

    def begin(self, step: int, answers: Sequence[Answer]) -> None:
        """Before the step's losses."""
        looked_at = answers[: self._audit.wanted(step)]
        self._places = {answer.stream: place for place, answer in enumerate(looked_at)}

    def look_at(self, batch: DistilledBatch) -> None:
        """What the method did with a micro-batch."""
        start = 0
        for answer in batch.answers:
            rows = slice(start, start + len(answer.response))
            start = rows.stop
            if answer.stream not in self._places:
                continue
            weight_T = batch.weights_T[rows]
            self._audit.add(
                self._places[answer.stream],
                AuditedSequence(
                    pair_id=answer.pair_id,
                    student_prompt=answer.student_prompt,
                    teacher_prompt=answer.teacher_prompt,
                    response=answer.response,
                    truncated=answer.truncated,
                    epistemic=answer.epistemic,
                    passed=answer.passed,
                    evidence=answer.evidence,
                ),
                TokenSignals.from_telemetry(batch.out.telemetry, weight_T, rows),
                batch.student_TD[rows],
                batch.teacher_TD[rows],
                batch.head_VD,
            )

    def end(self, step: int) -> None:
        """After the step's losses: writes down what was looked at."""
        self._audit.write(step)
