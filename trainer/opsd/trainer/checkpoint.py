"""Checkpoints: all that a step changes, so that a resumed run equals one that never stopped.

`checkpoints/step-00000025/` holds state.safetensors (flat LoRA weights, Adam moments, the averaged
teacher), curriculum.json (solve rates) and meta.json (step, place in the data, counts, digests).
There is no random state: every draw is a function of the seed and the step.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from opsd.trainer.errors import CheckpointError
from opsd.trainer.files import fsync_dir, write_durably
from opsd.trainer.step import Stepper
from opsd.v1 import training_pb2

DEFAULT_KEEP = 2


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: made where it is missing.
        spec: a checkpoint of another spec is refused.
    """

    def __init__(self, directory: Path, spec: training_pb2.RunSpec) -> None:
        self._directory = directory
        self._keep = spec.keep_checkpoints or DEFAULT_KEEP
        self._model = spec.model.path, spec.model.fingerprint
        self._spec_sha256 = hashlib.sha256(spec.SerializeToString(deterministic=True)).hexdigest()

    def save(self, stepper: Stepper, steps_done: int) -> None:
        """Writes one whole and drops all but the last `keep_checkpoints`."""
        self._directory.mkdir(exist_ok=True)
        target = self._directory / f"step-{steps_done:08d}"
        temporary = self._directory / f".{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        state = save(_tensors(stepper))
        curriculum = json.dumps(stepper.curriculum.state()).encode()
        meta = {
            "steps_done": steps_done,
            "position": stepper.draws.position,
            "generated_tokens": stepper.generated_tokens,
            "skipped_steps": stepper.num_skipped,
            "model_path": self._model[0],
            "model_fingerprint": self._model[1],
            "spec_sha256": self._spec_sha256,
            "state_sha256": hashlib.sha256(state).hexdigest(),
            "curriculum_sha256": hashlib.sha256(curriculum).hexdigest(),
        }
        write_durably(temporary / "state.safetensors", state)
        write_durably(temporary / "curriculum.json", curriculum)
        write_durably(temporary / "meta.json", json.dumps(meta, indent=2).encode() + b"\n")
        fsync_dir(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        fsync_dir(self._directory)
        for old in self._newest_first()[self._keep :]:
            shutil.rmtree(old)

    def resume(self, stepper: Stepper) -> int:
        """Restores the newest intact checkpoint; returns the steps done, 0 where there is none.

        Raises:
            CheckpointError: the newest intact one belongs to another spec.
        """
        for path in self._newest_first():
            found = _read(path)
            if found is None:
                continue
            meta, tensors, curriculum = found
            theirs = meta["model_path"], meta["model_fingerprint"]
            if theirs != self._model:
                raise CheckpointError(
                    f"{path} is of the base model {_model_name(theirs)}, run.json names "
                    f"{_model_name(self._model)}; use an empty output_dir"
                )
            if meta["spec_sha256"] != self._spec_sha256:
                raise CheckpointError(
                    f"{path} belongs to another run.json; use an empty output_dir"
                )
            _restore(stepper, tensors)
            stepper.draws.seek(meta["position"])
            stepper.generated_tokens = meta["generated_tokens"]
            stepper.num_skipped = meta["skipped_steps"]
            stepper.curriculum.restore(curriculum)
            return int(meta["steps_done"])
        return 0

    def _newest_first(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"), reverse=True)


def _model_name(model: tuple[str, str]) -> str:
    path, fingerprint = model
    return f"{path} ({fingerprint[:12] or 'no fingerprint given'})"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]] | None:
    """The checkpoint, or None where its bytes are not what was written."""
    try:
        meta: dict[str, Any] = json.loads((path / "meta.json").read_bytes())
        state = (path / "state.safetensors").read_bytes()
        curriculum = (path / "curriculum.json").read_bytes()
        for data, name in ((state, "state_sha256"), (curriculum, "curriculum_sha256")):
            if hashlib.sha256(data).hexdigest() != meta[name]:
                return None
    except (OSError, ValueError, KeyError):
        return None
    return meta, load(state), json.loads(curriculum)


def _tensors(stepper: Stepper) -> dict[str, Tensor]:
    moments = stepper.optimizer.state[stepper.weights]
    tensors = {
        "weights": stepper.weights.detach(),
        "adam_step": moments["step"],
        "exp_avg": moments["exp_avg"],
        "exp_avg_sq": moments["exp_avg_sq"],
    }
    if stepper.network.ema is not None:
        tensors["ema"] = stepper.network.ema.weights_P
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _restore(stepper: Stepper, tensors: dict[str, Tensor]) -> None:
    device = stepper.weights.device
    with torch.no_grad():
        stepper.weights.copy_(tensors["weights"])
        if stepper.network.ema is not None:
            stepper.network.ema.weights_P.copy_(tensors["ema"])
    stepper.optimizer.state[stepper.weights] = {
        "step": tensors["adam_step"].to(device),
        "exp_avg": tensors["exp_avg"].to(device),
        "exp_avg_sq": tensors["exp_avg_sq"].to(device),
    }
