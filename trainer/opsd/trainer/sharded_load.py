"""Loading a sharded base: each rank reads its own rows of every weight, and nothing else."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from opsd.trainer.errors import ModelError
from opsd.trainer.sharding import ShardedBase


def empty_model(path: Path, dtype: torch.dtype) -> Any:
    """The model of config.json: buffers as they should be, parameters on the meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
    from transformers.initialization import no_init_weights

    config = AutoConfig.from_pretrained(path, local_files_only=True)
    with _parameters_on_meta(), no_init_weights():
        causal = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    causal.tie_weights()
    if (path / "generation_config.json").is_file():
        causal.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return causal


def can_be_read_in_parts(causal: Any, path: Path) -> bool:
    """Whether the files name every weight as the model does; some architectures convert names."""
    files = _files_by_name(path)
    named = causal.named_parameters()  # a tied one once, under its first name
    persistent = [name for name in causal.state_dict() if name in dict(causal.named_buffers())]
    return all(name in files for name in [*(name for name, _ in named), *persistent])


def read_shards(causal: Any, sharded: ShardedBase, path: Path, device: torch.device) -> None:
    """Fills the parameters of a model made by `empty_model` and sharded since.

    Raises:
        ModelError: a weight has another shape than config.json says.
    """
    from torch.distributed.tensor import DTensor

    files = _files_by_name(path)
    found: dict[str, Tensor] = {}
    with contextlib.ExitStack() as stack:
        opened = {
            file: stack.enter_context(safe_open(file, framework="pt"))
            for file in sorted(set(files.values()))
        }
        for name, parameter in causal.named_parameters():
            part = opened[files[name]].get_slice(name)
            if tuple(part.get_shape()) != tuple(parameter.shape):
                raise ModelError(
                    f"{files[name]}: {name} is {part.get_shape()}, config.json says "
                    f"{list(parameter.shape)}"
                )
            start, stop = _rows_of_rank(parameter.shape[0], sharded)
            local = part[start:stop].to(device=device, dtype=parameter.dtype)
            found[name] = DTensor.from_local(
                local,
                sharded.mesh,
                parameter.placements,
                run_check=False,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
        for name, buffer in causal.named_buffers():
            if name in files:
                found[name] = opened[files[name]].get_tensor(name).to(buffer.dtype)
    causal.load_state_dict(found, strict=False, assign=True)
    for module in causal.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    sharded.retie()


def _rows_of_rank(rows: int, sharded: ShardedBase) -> tuple[int, int]:
    """As torch.chunk would split them, which is how fully_shard does."""
    size = -(-rows // sharded.mesh.size())
    start = min(size * sharded.mesh.get_local_rank(), rows)
    return start, min(start + size, rows)


def _files_by_name(path: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    return files


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters that are made within are made without memory; buffers are made as ever."""
    register = torch.nn.Module.register_parameter

    def without_memory(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = torch.nn.Parameter(param.to("meta"), requires_grad=False)
        register(self, name, param)

    torch.nn.Module.register_parameter = without_memory  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register  # type: ignore[method-assign]
