"""A run from the first step to the saved adapter."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from opsd.trainer import failpoints
from opsd.trainer.adapter_io import WEIGHTS_NAME, adapter_config, save_adapter
from opsd.trainer.cancel import Cancellation
from opsd.trainer.checkpoint import Checkpoints
from opsd.trainer.distributed import Ranks
from opsd.trainer.events import EventLog
from opsd.trainer.files import replace_file
from opsd.trainer.model import BaseModel, load_base
from opsd.trainer.step import Stepper
from opsd.trainer.teacher_check import check_teacher, require_passed
from opsd.v1 import training_pb2

RATES_NAME = "solve-rates.json"
"""Attempts and passes that the run added for each problem, beside the adapter."""


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

    base = load_base(spec.model, ranks.device)
    stepper = Stepper(spec, ranks, base, on_progress)
    checkpoints = Checkpoints(Path(spec.output_dir) / "checkpoints", spec)
    first = checkpoints.resume(stepper)
    ranks.broadcast_(stepper.network.student.weights_P)
    ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights at the start")
    events.step = result.steps_done = first
    result.generated_tokens = stepper.generated_tokens
    result.skipped_steps = stepper.num_skipped
    resumed = f", resumed after step {first}" if first else ""
    events.write("heartbeat", f"model loaded in {time.monotonic() - began:.1f} s{resumed}")
    if not first and spec.teacher_check.num_problems and stepper.method.has_teacher:
        _check_teacher(spec, stepper, base, ranks, events, result)

    for step in range(first, spec.optim.num_steps):
        _step_failpoints(step)
        skipped_before = stepper.maker.num_skipped
        metrics = stepper.run(step)
        result.skipped_steps = stepper.num_skipped
        events.step = result.steps_done = step + 1
        result.generated_tokens = stepper.generated_tokens
        result.last.CopyFrom(metrics)
        events.write("step", _note(stepper, skipped_before, metrics), metrics)
        if step == first:
            _say(ranks, f"first step done {time.monotonic() - began:.1f} s after loading began")
        if _is_due(spec.export_every_steps, step, spec):
            digest = ""
            if ranks.rank == 0:
                digest = _export(spec, stepper, base.fingerprint, step + 1)
            events.write("export", digest, metrics)
        if _is_due(spec.checkpoint_every_steps, step, spec):
            ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights")
            if ranks.rank == 0:
                checkpoints.save(stepper, step + 1)
            events.write("checkpoint")

    ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights at the end")
    if ranks.rank == 0:
        _save(spec, stepper, base.fingerprint, result)
    stepper.close()
    events.write("saved", result.adapter_sha256)


def _check_teacher(
    spec: training_pb2.RunSpec,
    stepper: Stepper,
    base: BaseModel,
    ranks: Ranks,
    events: EventLog,
    result: training_pb2.RunResult,
) -> None:
    report = check_teacher(spec, stepper, base, ranks)
    result.teacher_check.CopyFrom(report)
    events.write("teacher_check", report.explanation, teacher_check=report)
    require_passed(report)


def _is_due(every: int, step: int, spec: training_pb2.RunSpec) -> bool:
    """Whether this step, from 0, is one of every so many; the last has its own ending."""
    return bool(every) and (step + 1) % every == 0 and step + 1 < spec.optim.num_steps


def _export(
    spec: training_pb2.RunSpec, stepper: Stepper, model_fingerprint: str, steps_done: int
) -> str:
    """Writes the adapter as it is now; returns its digest."""
    target = Path(spec.output_dir) / "adapters" / f"step-{steps_done:08d}"
    target.parent.mkdir(exist_ok=True)
    config = adapter_config(spec.lora, model_fingerprint)
    return save_adapter(target, config, stepper.network.adapter_state())


def _save(
    spec: training_pb2.RunSpec,
    stepper: Stepper,
    model_fingerprint: str,
    result: training_pb2.RunResult,
) -> None:
    target = Path(spec.output_dir) / "adapter"
    counts = stepper.curriculum.new_counts()
    if counts:
        rates = {k: {"attempts": a, "solved": s} for k, (a, s) in counts.items()}
        replace_file(Path(spec.output_dir) / RATES_NAME, json.dumps(rates).encode() + b"\n")
    config = adapter_config(spec.lora, model_fingerprint)
    result.adapter_sha256 = save_adapter(target, config, stepper.network.adapter_state())
    result.adapter_path = str(target)
    if failpoints.armed("corrupt-adapter"):
        weights = target / WEIGHTS_NAME
        data = bytearray(weights.read_bytes())
        data[-1] ^= 0xFF
        weights.write_bytes(data)
    if failpoints.armed("crash-before-result"):
        os.kill(os.getpid(), signal.SIGKILL)


def _step_failpoints(step: int) -> None:
    if failpoints.armed("exit-at-step", step):
        os._exit(3)
    while failpoints.armed("hang-at-step", step):
        time.sleep(3600)


def _note(stepper: Stepper, before: int, metrics: training_pb2.StepMetrics) -> str:
    notes: list[str] = []
    if new := stepper.maker.num_skipped - before:
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


def _say(ranks: Ranks, text: str) -> None:
    if ranks.rank == 0:
        print(text, file=sys.stderr, flush=True)
