"""LoRA adapters of random weights, strong enough to change every greedy completion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

LORA_RANK: Final = 8


def write_random_adapter(model_dir: Path, path: Path, seed: int, std: float = 0.3) -> None:
    """All seven projections of a Qwen3, both factors drawn with ``std``, into a directory."""
    config = json.loads((model_dir / "config.json").read_text())
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "self_attn.q_proj": (hidden, queries),
        "self_attn.k_proj": (hidden, keys),
        "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden),
        "mlp.gate_proj": (hidden, ffn),
        "mlp.up_proj": (hidden, ffn),
        "mlp.down_proj": (ffn, hidden),
    }
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (num_in, num_out) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            a_RI = torch.randn(LORA_RANK, num_in, generator=generator) * std
            b_OR = torch.randn(num_out, LORA_RANK, generator=generator) * std
            tensors[f"{key}.lora_A.weight"] = a_RI
            tensors[f"{key}.lora_B.weight"] = b_OR
    save_file(tensors, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": LORA_RANK,
                "lora_alpha": LORA_RANK,
                "bias": "none",
                "target_modules": sorted(name.split(".")[1] for name in shapes),
            }
        )
    )
