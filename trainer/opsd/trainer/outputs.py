"""What a run leaves behind: adapters, and how often each problem was solved."""

import json
import os
import signal
from pathlib import Path

from opsd.trainer import failpoints
from opsd.trainer.adapter_io import WEIGHTS_NAME, adapter_config, save_adapter
from opsd.trainer.files import replace_file
from opsd.trainer.step import Stepper
from opsd.v1 import training_pb2

RATES_NAME = "solve-rates.json"
"""Attempts and passes that the run added for each problem, beside the adapter."""


def export_adapter(
    spec: training_pb2.RunSpec, stepper: Stepper, model_fingerprint: str, steps_done: int
) -> str:
    """Writes `adapters/step-NNNNNNNN`, the adapter as it is now; returns its digest."""
    target = Path(spec.output_dir) / "adapters" / f"step-{steps_done:08d}"
    target.parent.mkdir(exist_ok=True)
    config = adapter_config(spec.lora, model_fingerprint)
    return save_adapter(target, config, stepper.network.adapter_state())


def save_outputs(
    spec: training_pb2.RunSpec,
    stepper: Stepper,
    model_fingerprint: str,
    result: training_pb2.RunResult,
) -> None:
    """Writes the solve rates and the adapter, and tells the result of it."""
    counts = stepper.curriculum.new_counts()
    if counts:
        rates = {k: {"attempts": a, "solved": s} for k, (a, s) in counts.items()}
        replace_file(Path(spec.output_dir) / RATES_NAME, json.dumps(rates).encode() + b"\n")
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
