"""The base model: identity, loading, and what the trainer needs it to be."""

import contextlib
import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opsd.trainer import attention, sharded_load
from opsd.trainer.errors import ModelError
from opsd.trainer.sharding import ShardedBase
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
    packs: bool = False
    """Whether several sequences fit in one row without padding, see `attention`."""
    sharded: ShardedBase | None = None
    """How it is spread over the ranks; None: each has all of it."""

    @property
    def eos_id(self) -> int:
        """The token that ends an answer which is trained on as text."""
        own = self.tokenizer.eos_token_id
        return own if isinstance(own, int) else min(self.eos_ids)


def load_base(
    ref: training_pb2.ModelRef,
    device: torch.device,
    sharding: training_pb2.Sharding.ValueType = training_pb2.SHARDING_NONE,
) -> BaseModel:
    """Loads and checks the model; raises `ModelError` saying what is wrong.

    Args:
        ref: path, dtype and, where the spec knows it, fingerprint.
        device: of this rank.
        sharding: FSDP spreads it over the default process group, a collective call; a process
            alone has all of it all the same.
    """
    path = Path(ref.path)
    identity = fingerprint(path)
    if ref.fingerprint and ref.fingerprint != identity:
        raise ModelError(
            f"model {path}: fingerprint is {identity}, the spec says {ref.fingerprint}: "
            "this is not the model that the run was prepared for"
        )
    from transformers import AutoTokenizer  # seconds to import
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # stderr is a log file
    is_sharded = sharding == training_pb2.SHARDING_FSDP and dist.is_initialized()
    try:
        if is_sharded:
            causal, sharded = _sharded(path, _DTYPES[ref.dtype], device)
        else:
            causal, sharded = _whole(path, _DTYPES[ref.dtype], device), None
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {path}: cannot be loaded: {error}") from error
    _check_plain_head(causal, sharded, device)
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
        packs=_packs(causal, device),
        sharded=sharded,
    )


def _whole(path: Path, dtype: torch.dtype, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM

    causal = AutoModelForCausalLM.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa", local_files_only=True
    )
    return causal.to(device).eval().requires_grad_(False)


def _sharded(path: Path, dtype: torch.dtype, device: torch.device) -> tuple[Any, ShardedBase]:
    causal = sharded_load.empty_model(path, dtype)
    in_parts = sharded_load.can_be_read_in_parts(causal, path)
    if not in_parts:
        _say(f"{path} names its weights otherwise than the model: every rank loads it whole first")
        causal = _whole(path, dtype, torch.device("cpu"))
    causal.eval().requires_grad_(False)
    sharded = ShardedBase(causal, device)
    if in_parts:
        sharded_load.read_shards(causal, sharded, path, device)
    return causal, sharded


def _eos_ids(causal: Any, tokenizer: Any) -> frozenset[int]:
    found: set[int] = set()
    for source in (causal.generation_config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update([ids] if isinstance(ids, int) else ids or [])
    if not found:
        raise ModelError("neither the model's generation_config nor its tokenizer has an eos token")
    return frozenset(found)


@torch.no_grad()
def _check_plain_head(causal: Any, sharded: ShardedBase | None, device: torch.device) -> None:
    """The loss computes logits as hidden @ weight.T: refuse a model whose head does more."""
    head = causal.get_output_embeddings()
    problem = None
    if head is None or getattr(head, "bias", None) is not None:
        problem = "has a bias or is missing"
    else:
        ids = torch.zeros((1, 2), dtype=torch.long, device=device)
        with sharded.whole_head() if sharded is not None else contextlib.nullcontext():
            logits = causal(input_ids=ids, use_cache=False).logits
            hidden: Tensor = causal.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
            plain = hidden @ head.weight.T
        if not torch.allclose(plain, logits, rtol=1e-2, atol=1e-2):
            problem = "scales or caps its logits"
    if problem is not None:
        raise ModelError(f"{type(causal).__name__}: the output head {problem}; not supported")


@torch.no_grad()
def _packs(causal: Any, device: torch.device) -> bool:
    """Whether sequences in one row come out as they do alone; if so, attention is set for it.

    Not for a model that carries a state along the row, or keeps arguments from its attention.
    """
    attention.register()
    decoder = causal.get_decoder()
    first, second = (torch.tensor([ids], device=device) for ids in ([3, 1, 2], [2, 3]))
    alone = torch.cat(
        [decoder(input_ids=ids, use_cache=False).last_hidden_state for ids in (first, second)], 1
    )
    try:
        causal.set_attn_implementation(attention.NAME)
        packed: Tensor = decoder(
            input_ids=torch.cat([first, second], 1),
            use_cache=False,
            **attention.packed_arguments([3, 2], device),
        ).last_hidden_state
        # Rounding in 16 bits over many layers, but nothing that another sequence could do.
        far = float((packed - alone).norm() / alone.norm())
        reason = "" if far < 0.1 else f"hidden states are {far:.0%} off"
    except (ModelError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error)
    if not reason:
        return True
    causal.set_attn_implementation("sdpa")
    _say(f"{type(causal).__name__} cannot take packed sequences, they are padded: {reason}")
    return False


def _say(text: str) -> None:
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(text, file=sys.stderr, flush=True)
