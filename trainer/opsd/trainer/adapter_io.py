"""Adapters on disk: peft's format, whole or absent, named by what they contain."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from opsd.trainer.errors import AdapterError
from opsd.trainer.files import fsync_dir, write_durably
from opsd.v1 import training_pb2

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def content_digest(adapter: Path) -> str:
    """Hexadecimal SHA-256 over an adapter's content, as docs/reference/adapters.md defines it.

    For adapter_config.json, then adapter_model.safetensors: the name in UTF-8, NUL, the size in
    bytes as 8 bytes little-endian, the bytes. Other files are not part of an adapter.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        data = (adapter / name).read_bytes()
        digest.update(name.encode() + b"\0" + len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def adapter_config(lora: training_pb2.LoraSpec, model_fingerprint: str) -> bytes:
    """adapter_config.json: the same bytes for the same spec and model, on every machine.

    `base_model_name_or_path` holds the model's fingerprint, since a path would differ between
    machines; peft and vLLM take the base model from their caller and only display it.
    """
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    config = {
        "base_model_name_or_path": model_fingerprint,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        "target_modules": sorted(lora.target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"


def save_adapter(target: Path, config: bytes, state: dict[str, Tensor]) -> str:
    """Writes the adapter directory atomically, replacing an earlier one; returns its digest.

    Args:
        target: directory to appear; its parent exists.
        config: from `adapter_config`.
        state: peft's names to tensors; saved in their dtype.

    Raises:
        AdapterError: a tensor is not finite; nothing is written.
    """
    for name, tensor in state.items():
        if not bool(torch.isfinite(tensor).all()):
            raise AdapterError(f"adapter not saved: {name} is not finite")
    tensors = {name: state[name].detach().cpu().contiguous() for name in sorted(state)}
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o755)
    write_durably(temporary / CONFIG_NAME, config)
    write_durably(temporary / WEIGHTS_NAME, save(tensors, metadata={"format": "pt"}))
    digest = content_digest(temporary)
    fsync_dir(temporary)
    # A directory cannot be renamed over a full one. A target is left over only where an earlier
    # process saved it and died before its result: nobody has been told of it yet.
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    fsync_dir(target.parent)
    return digest
