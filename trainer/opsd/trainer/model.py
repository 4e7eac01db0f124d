"""The base model: identity, loading, and what the trainer needs it to be."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opsd.trainer.errors import ModelError
from opsd.v1 import training_pb2

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def fingerprint(model_path: Path) -> str:
    """The model's identity as hexadecimal SHA-256, as docs/reference/adapters.md defines it.

    Over the bytes of config.json, then for each *.safetensors file directly in the directory, in
    order of name: NUL, the name in UTF-8, NUL, the size in bytes as 8 bytes little-endian. The
    weights themselves are not read: they can be hundreds of gigabytes.

    Raises:
        ModelError: there is no config.json or no weight file.
    """
    config = model_path / "config.json"
    if not config.is_file():
        raise ModelError(f"model {model_path}: no config.json; point at a Hugging Face directory")
    weights = sorted(model_path.glob("*.safetensors"), key=lambda path: path.name.encode())
    if not weights:
        raise ModelError(f"model {model_path}: no *.safetensors file")
    digest = hashlib.sha256(config.read_bytes())
    for path in weights:
        size = path.stat().st_size.to_bytes(8, "little")
        digest.update(b"\0" + path.name.encode() + b"\0" + size)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A causal language model in eval mode, no gradients, with its tokenizer."""

    causal: Any  # transformers PreTrainedModel
    tokenizer: Any
    fingerprint: str
    context_tokens: int
    eos_ids: frozenset[int]
    pad_id: int

    @property
    def eos_id(self) -> int:
        """The token that ends an answer which is trained on as text."""
        own = self.tokenizer.eos_token_id
        return own if isinstance(own, int) else min(self.eos_ids)


def load_base(ref: training_pb2.ModelRef, device: torch.device) -> BaseModel:
    """Loads and checks the model; raises `ModelError` saying what is wrong."""
    path = Path(ref.path)
    identity = fingerprint(path)
    if ref.fingerprint and ref.fingerprint != identity:
        raise ModelError(
            f"model {path}: fingerprint is {identity}, the spec says {ref.fingerprint}: "
            "this is not the model that the run was prepared for"
        )
    from transformers import AutoModelForCausalLM, AutoTokenizer  # seconds to import
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # stderr is a log file
    try:
        causal = AutoModelForCausalLM.from_pretrained(
            path, dtype=_DTYPES[ref.dtype], attn_implementation="sdpa", local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {path}: cannot be loaded: {error}") from error
    causal.to(device).eval().requires_grad_(False)
    _check_plain_head(causal)
    eos_ids = _eos_ids(causal, tokenizer)
    context_tokens = getattr(causal.config, "max_position_embeddings", None)
    if not context_tokens:
        raise ModelError(f"model {path}: config.json has no max_position_embeddings")
    return BaseModel(
        causal=causal,
        tokenizer=tokenizer,
        fingerprint=identity,
        context_tokens=context_tokens,
        eos_ids=eos_ids,
        pad_id=min(eos_ids),  # never attended to: any id that exists will do
    )


def _eos_ids(causal: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for source in (causal.generation_config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    if not found:
        raise ModelError("neither the model's generation_config nor its tokenizer has an eos token")
    return frozenset(found)


@torch.no_grad()
def _check_plain_head(causal: Any) -> None:
    """The loss computes logits as hidden @ weight.T: refuse a model whose head does more."""
    head = causal.get_output_embeddings()
    problem = None
    if head is None or getattr(head, "bias", None) is not None:
        problem = "has a bias or is missing"
    else:
        ids = torch.zeros((1, 2), dtype=torch.long, device=head.weight.device)
        logits = causal(input_ids=ids, use_cache=False).logits
        hidden: Tensor = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        if not torch.allclose(hidden @ head.weight.T, logits, rtol=1e-2, atol=1e-2):
            problem = "scales or caps its logits"
    if problem is not None:
        raise ModelError(f"{type(causal).__name__}: the output head {problem}; not supported")
