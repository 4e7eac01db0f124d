"""Which attempts of a step the token audit looks at, and when."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from opsd.trainer.lora import StudentTeacher
from opsd.trainer.methods import Answer
from opsd.trainer.methods.distil import DistilledBatch
from opsd.trainer.token_audit import FILE_NAME, AuditedSequence, TokenAudit, TokenSignals
from opsd.v1 import training_pb2


class AuditedSteps:
    """The first attempts of rank 0 in every so many steps of a method that has a teacher.

    Args:
        spec: of the run, defaults filled in.
        network: whose output head gives the alternatives.
        tokenizer: of the model.
        rank: of this process.
        steps_done: by the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        network: StudentTeacher,
        tokenizer: Any,
        rank: int,
        steps_done: int,
    ) -> None:
        self._spec = spec.token_audit
        self._network = network
        self._audit = TokenAudit(
            spec.token_audit,
            tokenizer,
            Path(spec.output_dir) / FILE_NAME if rank == 0 else None,
            temperature=spec.rollout.temperature,
            steps_done=steps_done,
        )
        self._places: dict[int, int] = {}
        self._seen: list[tuple[int, AuditedSequence, TokenSignals, Tensor, Tensor]] = []

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
            sequence = AuditedSequence(
                pair_id=answer.pair_id,
                student_prompt=answer.student_prompt,
                teacher_prompt=answer.teacher_prompt,
                response=answer.response,
                truncated=answer.truncated,
                epistemic=answer.epistemic,
                passed=answer.passed,
                evidence=answer.evidence,
            )
            signals = TokenSignals.from_telemetry(batch.out.telemetry, batch.weights_T[rows], rows)
            place = self._places[answer.stream]
            self._seen.append(
                (place, sequence, signals, batch.student_TD[rows], batch.teacher_TD[rows])
            )

    def end(self, step: int) -> None:
        """After the step's losses, on every rank: writes down what was looked at."""
        if not self._spec.attempts_per_step or step % max(self._spec.every_steps, 1):
            return
        with self._network.whole_head():
            for place, sequence, signals, student_TD, teacher_TD in self._seen:
                head_VD = self._network.head_weight_VD
                self._audit.add(place, sequence, signals, student_TD, teacher_TD, head_VD)
        self._seen.clear()
        self._audit.write(step)
