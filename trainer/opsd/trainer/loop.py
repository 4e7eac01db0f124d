"""A run from the first step to the saved adapter."""

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
from opsd.trainer.model import load_base
from opsd.trainer.step import Stepper
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

    base = load_base(spec.model, ranks.device)
    stepper = Stepper(spec, ranks, base, on_progress)
    checkpoints = Checkpoints(Path(spec.output_dir) / "checkpoints", spec)
    first = checkpoints.resume(stepper)
    ranks.broadcast_(stepper.network.student.weights_P)
    ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights at the start")
    events.step = result.steps_done = first
    result.generated_tokens = stepper.generated_tokens
    resumed = f", resumed after step {first}" if first else ""
    events.write("heartbeat", f"model loaded in {time.monotonic() - began:.1f} s{resumed}")

    for step in range(first, spec.optim.num_steps):
        _step_failpoints(step)
        skipped_before = stepper.maker.num_skipped
        metrics = stepper.run(step)
        events.step = result.steps_done = step + 1
        result.generated_tokens = stepper.generated_tokens
        result.last.CopyFrom(metrics)
        events.write("step", _skipped(stepper, skipped_before), metrics)
        if step == first:
            _say(ranks, f"first step done {time.monotonic() - began:.1f} s after loading began")
        every = spec.checkpoint_every_steps
        if every and (step + 1) % every == 0 and step + 1 < spec.optim.num_steps:
            ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights")
            if ranks.rank == 0:
                checkpoints.save(stepper, step + 1)
            events.write("checkpoint")

    ranks.check_agreement(stepper.network.student.weights_P, "LoRA weights at the end")
    if ranks.rank == 0:
        _save(spec, stepper, base.fingerprint, result)
    events.write("saved", result.adapter_sha256)


def _save(
    spec: training_pb2.RunSpec,
    stepper: Stepper,
    model_fingerprint: str,
    result: training_pb2.RunResult,
) -> None:
    target = Path(spec.output_dir) / "adapter"
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


def _skipped(stepper: Stepper, before: int) -> str:
    new = stepper.maker.num_skipped - before
    if not new:
        return ""
    return (
        f"skipped {new} problems whose prompt does not fit the model's context "
        f"({stepper.maker.num_skipped} so far)"
    )


def _say(ranks: Ranks, text: str) -> None:
    if ranks.rank == 0:
        print(text, file=sys.stderr, flush=True)
