"""A run from the first step to the saved adapter."""

import contextlib
import os
import sys
import time
from pathlib import Path

from opsd.trainer import failpoints
from opsd.trainer.audited_steps import AuditedSteps
from opsd.trainer.cancel import Cancellation
from opsd.trainer.checkpoint import Checkpoints
from opsd.trainer.distributed import Ranks
from opsd.trainer.events import EventLog
from opsd.trainer.model import BaseModel, load_base
from opsd.trainer.outputs import export_adapter, save_outputs
from opsd.trainer.step import Stepper
from opsd.trainer.teacher_check import check_teacher, require_passed
from opsd.v1 import training_pb2


def train(
    spec: training_pb2.RunSpec,
    ranks: Ranks,
    events: EventLog,
    cancellation: Cancellation,
    result: training_pb2.RunResult,
) -> None:
    """Trains and saves; fills in the result as it goes, so that a failure shows how far it came.

    Every rank runs this; rank 0 alone writes.
    """
    began = time.monotonic()

    def on_progress() -> None:
        cancellation.raise_if_requested()
        events.heartbeat_if_due()

    base = load_base(spec.model, ranks.device, spec.parallel.sharding)
    with contextlib.closing(Stepper(spec, ranks, base, on_progress)) as stepper:
        run = _Run(spec, ranks, base, stepper, events, result)
        run.begin(began)
        for step in range(result.steps_done, spec.optim.num_steps):
            run.step(step)
        run.finish()


class _Run:
    """What one trainer process does in turn."""

    def __init__(
        self,
        spec: training_pb2.RunSpec,
        ranks: Ranks,
        base: BaseModel,
        stepper: Stepper,
        events: EventLog,
        result: training_pb2.RunResult,
    ) -> None:
        self._spec = spec
        self._ranks = ranks
        self._base = base
        self._stepper = stepper
        self._events = events
        self._result = result
        self._checkpoints = Checkpoints(Path(spec.output_dir) / "checkpoints", spec)
        self._began = 0.0
        self._first = 0

    def begin(self, began: float) -> None:
        """Goes on from the last checkpoint, or checks the teacher first."""
        self._began = began
        stepper, result = self._stepper, self._result
        self._first = self._checkpoints.resume(stepper)
        stepper.audited = AuditedSteps(
            self._spec, stepper.network, self._base.tokenizer, self._ranks.rank, self._first
        )
        self._ranks.broadcast_(stepper.network.student.weights_P)
        self._expect_agreement("at the start")
        self._events.step = result.steps_done = self._first
        result.generated_tokens = stepper.generated_tokens
        result.skipped_steps = stepper.num_skipped
        resumed = f", resumed after step {self._first}" if self._first else ""
        loaded_s = time.monotonic() - began
        self._events.write("heartbeat", f"model loaded in {loaded_s:.1f} s{resumed}")
        if not self._first and self._spec.teacher_check.num_problems and stepper.method.has_teacher:
            with stepper.network.gathered():
                report = check_teacher(self._spec, stepper, self._base, self._ranks)
            result.teacher_check.CopyFrom(report)
            self._events.write("teacher_check", report.explanation, teacher_check=report)
            require_passed(report)

    def step(self, step: int) -> None:
        """The step of this number, from 0, and what is due after it."""
        _step_failpoints(step)
        stepper, result, events = self._stepper, self._result, self._events
        unusable_before = stepper.maker.num_skipped
        metrics = stepper.run(step)
        events.step = result.steps_done = step + 1
        result.generated_tokens = stepper.generated_tokens
        result.skipped_steps = stepper.num_skipped
        result.last.CopyFrom(metrics)
        events.write("step", _note(stepper, unusable_before, metrics), metrics)
        if step == self._first:
            self._say(f"first step done {time.monotonic() - self._began:.1f} s after loading began")
        if self._is_due(self._spec.export_every_steps, step):
            digest = ""
            if self._ranks.rank == 0:
                digest = export_adapter(self._spec, stepper, self._base.fingerprint, step + 1)
            events.write("export", digest, metrics)
        if self._is_due(self._spec.checkpoint_every_steps, step):
            self._expect_agreement(f"after step {step + 1}")
            if self._ranks.rank == 0:
                self._checkpoints.save(stepper, step + 1)
            events.write("checkpoint")

    def finish(self) -> None:
        """Saves what the run was for."""
        self._expect_agreement("at the end")
        if self._ranks.rank == 0:
            save_outputs(self._spec, self._stepper, self._base.fingerprint, self._result)
        self._events.write("saved", self._result.adapter_sha256)

    def _is_due(self, every: int, step: int) -> bool:
        """Whether this step is one of every so many; the last has its own ending."""
        return bool(every) and (step + 1) % every == 0 and step + 1 < self._spec.optim.num_steps

    def _expect_agreement(self, when: str) -> None:
        weights_P = self._stepper.network.student.weights_P
        self._ranks.check_agreement(weights_P, f"LoRA weights {when}")

    def _say(self, text: str) -> None:
        if self._ranks.rank == 0:
            print(text, file=sys.stderr, flush=True)


def _step_failpoints(step: int) -> None:
    if failpoints.armed("exit-at-step", step):
        os._exit(3)
    while failpoints.armed("hang-at-step", step):
        time.sleep(3600)


def _note(stepper: Stepper, unusable_before: int, metrics: training_pb2.StepMetrics) -> str:
    notes: list[str] = []
    if new := stepper.maker.num_skipped - unusable_before:
        notes.append(
            f"skipped {new} problems whose prompt does not fit the model's context "
            f"({stepper.maker.num_skipped} so far)"
        )
    if metrics.skipped:
        notes.append(
            f"loss or gradient is not finite: the step changed nothing ({stepper.num_skipped} so "
            "far)"
        )
    elif not metrics.trained_fraction:
        notes.append("no attempt gave a signal: the step changed nothing")
    if aside := stepper.curriculum.num_aside(stepper.draws.epoch):
        notes.append(f"{aside} problems are set aside")
    return "; ".join(notes)
