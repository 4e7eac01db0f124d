"""Adapters put on the base with peft, and what must be right about them first."""

import json
from pathlib import Path
from typing import Any

import torch

from opsd.trainer.errors import AdapterError, SpecError
from opsd.trainer.model import BaseModel
from opsd.v1 import training_pb2

STUDENT = "default"  # peft's own name for the first adapter


def with_student(base: BaseModel, spec: training_pb2.RunSpec) -> Any:
    """The base as a peft model with the student's adapter, fresh or the spec's initial one."""
    from peft import LoraConfig, PeftModel, get_peft_model

    _check_targets(base.causal, list(spec.lora.target_modules))
    if spec.initial_adapter_path:
        path = Path(spec.initial_adapter_path)
        _check_same_shape(path, spec.lora)
        try:
            return PeftModel.from_pretrained(
                base.causal, path, adapter_name=STUDENT, is_trainable=True
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise AdapterError(f"initial_adapter_path {path}: {error}") from error
    config = LoraConfig(
        r=spec.lora.rank,
        lora_alpha=spec.lora.alpha,
        lora_dropout=spec.lora.dropout,
        target_modules=sorted(spec.lora.target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(spec.seed % 2**63)
    return get_peft_model(base.causal, config)


def load_adapter(peft_model: Any, path: Path, name: str) -> None:
    """Puts a saved adapter beside the student's, frozen."""
    try:
        peft_model.load_adapter(path, adapter_name=name, is_trainable=False)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise AdapterError(f"adapter {path}: {error}") from error


def lora_layers(peft_model: Any) -> list[Any]:
    """The modules that LoRA was put on."""
    from peft.tuners.lora import LoraLayer

    return [module for module in peft_model.modules() if isinstance(module, LoraLayer)]


def _check_targets(causal: Any, names: list[str]) -> None:
    # peft is content with one match; a typo among seven would train six.
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in causal.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    for name in names:
        if name not in linear:
            raise SpecError(
                "lora.target_modules",
                name,
                f"the model has no such linear layer; it has {', '.join(sorted(linear))}",
            )


def check_adapter_dir(path: Path, field: str) -> None:
    """Raises `AdapterError` where a file of the adapter is missing."""
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        if not (path / name).is_file():
            raise AdapterError(f"{field} {path}: no {name}")


def _check_same_shape(path: Path, lora: training_pb2.LoraSpec) -> None:
    check_adapter_dir(path, "initial_adapter_path")
    try:
        config = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))
        found = (config["r"], float(config["lora_alpha"]), sorted(config["target_modules"]))
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path}/adapter_config.json is malformed: {error!r}") from error
    wanted = (lora.rank, lora.alpha, sorted(lora.target_modules))
    if found != wanted:
        raise AdapterError(
            f"initial_adapter_path {path}: (rank, alpha, target_modules) are {found}, "
            f"the spec's lora says {wanted}"
        )
