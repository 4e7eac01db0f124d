"""What an adapter's files must be before the engine may see them.

The engine runs what it is given: a tensor of the wrong shape kills it, one NaN spoils every answer,
other bytes under a known name are served silently. So everything is checked here, on the bytes.
docs/reference/adapters.md defines the content digest and the model fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from opsd.daemon.errors import AdapterError, ConfigError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME)
"""The two files of an adapter, in the order in which the digest takes them."""

_MAX_CONFIG_BYTES = 1 << 20
_MAX_WEIGHTS_BYTES = 8 << 30
_MAX_HEADER_BYTES = 16 << 20
_CHUNK_BYTES = 1 << 20

_PREFIX = "base_model.model."
_FORM = f"{_PREFIX}<module>.lora_A.weight or …lora_B.weight"

_INERT = {
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
}
"""Keys of PEFT's configuration that change what the weights mean, with the values that do not."""


@dataclass(frozen=True, slots=True)
class _FloatFormat:
    """How a number is stored; a value is finite unless all exponent bits are set (IEEE 754)."""

    integer: str  # numpy's little-endian unsigned integer of the same width
    exponent_mask: int

    @property
    def size_bytes(self) -> int:
        return np.dtype(self.integer).itemsize


_FLOATS = {
    "F64": _FloatFormat("<u8", 0x7FF0_0000_0000_0000),
    "F32": _FloatFormat("<u4", 0x7F80_0000),
    "F16": _FloatFormat("<u2", 0x7C00),
    "BF16": _FloatFormat("<u2", 0x7F80),
}


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """What a verified adapter is."""

    sha256: str
    rank: int
    alpha: float
    size_bytes: int  # of both files
    target_modules: tuple[str, ...]
    num_tensors: int
    is_noop: bool  # every B is zero: the adapter changes nothing
    base_model: str  # as the files say: the trainer writes the model's fingerprint there


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An entry of a safetensors header; ``begin`` and ``end`` are offsets in the file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def content_digest(directory: Path) -> str:
    """The adapter's identity: SHA-256, hexadecimal, over each file's name, length and bytes."""
    digest = hashlib.sha256()
    for name in ADAPTER_FILES:
        with _open_regular(directory / name) as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(name.encode() + b"\0" + size.to_bytes(8, "little"))
            for chunk in _chunks(file):
                digest.update(chunk)
    return digest.hexdigest()


def model_fingerprint(model_dir: Path) -> str:
    """The model's identity: SHA-256, hexadecimal, over config.json and its weight files' names and
    sizes; ConfigError when there are none."""
    config = model_dir / "config.json"
    weights = sorted(model_dir.glob("*.safetensors"), key=lambda path: path.name.encode())
    if not config.is_file() or not weights:
        missing = "*.safetensors file" if config.is_file() else "config.json"
        raise ConfigError(
            f"model.path: {model_dir} has no {missing}: name a directory in Hugging Face format"
        )
    digest = hashlib.sha256(config.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(b"\0" + path.name.encode() + b"\0" + size.to_bytes(8, "little"))
    return digest.hexdigest()


def check_listing(directory: Path) -> None:
    """Raises AdapterError unless the directory is exactly the two regular files, of sane size."""
    if directory.is_symlink() or not directory.is_dir():
        raise AdapterError(f"adapter {directory}: not a directory")
    names = sorted(entry.name for entry in os.scandir(directory))
    extra = [name for name in names if name not in ADAPTER_FILES]
    missing = [name for name in ADAPTER_FILES if name not in names]
    if missing:
        raise AdapterError(f"adapter {directory}: {missing[0]} is missing")
    if extra:
        raise AdapterError(
            f"adapter {directory}: unexpected {extra[0]!r}: an adapter is {CONFIG_NAME} and "
            f"{WEIGHTS_NAME}, nothing else (no pickles)"
        )
    for name, limit in ((CONFIG_NAME, _MAX_CONFIG_BYTES), (WEIGHTS_NAME, _MAX_WEIGHTS_BYTES)):
        status = os.lstat(directory / name)
        if not stat.S_ISREG(status.st_mode):
            raise AdapterError(f"adapter {directory}: {name} is not a regular file (a link?)")
        if not 0 < status.st_size <= limit:
            raise AdapterError(
                f"adapter {directory}: {name} has {status.st_size} bytes, expected 1 to {limit}"
            )


def verify_adapter_dir(
    path: Path | str, *, expected_sha256: str, model_dir: Path | str, max_rank: int
) -> AdapterFacts:
    """Checks everything about an adapter's files that can be checked without running them.

    Raises AdapterError, which names the file, the tensor or the key, what was expected and what was
    found. Reads the whole adapter: call it in a thread.
    """
    directory = Path(path)
    try:
        check_listing(directory)
        found = content_digest(directory)
        if found != expected_sha256.lower():
            raise AdapterError(
                f"adapter {directory}: its content digest is {found}, expected {expected_sha256}: "
                "the files are corrupt or another adapter's"
            )
        config = _read_config(directory / CONFIG_NAME)
        rank, alpha, targets = _check_config(directory / CONFIG_NAME, config, max_rank=max_rank)
        weights = directory / WEIGHTS_NAME
        tensors = _read_header(weights)
        _check_shapes(directory, tensors, targets, rank=rank, base=base_shapes(Path(model_dir)))
        is_noop = _check_values(weights, tensors)
        size_bytes = sum((directory / name).stat().st_size for name in ADAPTER_FILES)
    except OSError as error:
        raise AdapterError(f"adapter {directory}: cannot be read: {error}") from error
    return AdapterFacts(
        sha256=found,
        rank=rank,
        alpha=alpha,
        size_bytes=size_bytes,
        target_modules=targets,
        num_tensors=len(tensors),
        is_noop=is_noop,
        base_model=str(config.get("base_model_name_or_path") or ""),
    )


def base_shapes(model_dir: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the base model, from its weight files' headers alone.

    Raises AdapterError when the model has no readable safetensors file.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(model_dir.glob("*.safetensors")):
        shapes |= {name: tensor.shape for name, tensor in _read_header(path).items()}
    if not shapes:
        raise AdapterError(f"model {model_dir}: no *.safetensors file to compare the adapter with")
    return shapes


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with _open_regular(path) as file:
            config = json.loads(file.read(_MAX_CONFIG_BYTES))
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: not JSON in UTF-8: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: a {type(config).__name__}, expected an object")
    return config


def _check_config(
    path: Path, config: dict[str, Any], *, max_rank: int
) -> tuple[int, float, tuple[str, ...]]:
    """(rank, alpha, target modules) of a plain LoRA adapter."""
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    for key, allowed in _INERT.items():
        if config.get(key) not in allowed:
            raise AdapterError(
                f"{path}: {key} is {config[key]!r}, only {allowed[0]!r} (plain LoRA) is served"
            )
    rank, alpha, targets = (config.get(key) for key in ("r", "lora_alpha", "target_modules"))
    if type(rank) is not int or not 1 <= rank <= max_rank:
        raise AdapterError(
            f"{path}: r is {rank!r}, expected 1 to {max_rank} (engine.max_lora_rank)"
        )
    if type(alpha) is int:
        alpha = float(alpha) if abs(alpha) < 1 << 53 else math.inf
    if not isinstance(alpha, float) or not 0.0 < alpha < math.inf:
        raise AdapterError(f"{path}: lora_alpha is {alpha!r}, expected a positive number")
    if not isinstance(targets, list) or not targets or not all(type(t) is str for t in targets):
        raise AdapterError(f"{path}: target_modules is {targets!r}, expected a list of names")
    return rank, alpha, tuple(sorted(targets))


def _read_header(path: Path) -> dict[str, _Tensor]:
    """Tensors of a safetensors file, after the library has accepted the file as a whole."""
    try:
        # The library checks that offsets are in bounds, without holes, and fit the shapes.
        with safe_open(path, framework="np") as opened:
            names = set(opened.keys())
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise AdapterError(f"{path}: header of {length} bytes, at most {_MAX_HEADER_BYTES}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        tensors = {
            name: _Tensor(
                entry["dtype"],
                tuple(entry["shape"]),
                start + entry["data_offsets"][0],
                start + entry["data_offsets"][1],
            )
            for name, entry in header.items()
        }
    except SafetensorError as error:
        raise AdapterError(f"{path}: not a valid safetensors file: {error}") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        RecursionError,
    ) as error:
        raise AdapterError(f"{path}: unreadable safetensors header: {error!r}") from None
    if set(tensors) != names:
        raise AdapterError(f"{path}: ambiguous safetensors header")
    return tensors


def _check_shapes(
    directory: Path,
    tensors: dict[str, _Tensor],
    targets: tuple[str, ...],
    *,
    rank: int,
    base: dict[str, tuple[int, ...]],
) -> None:
    """Every tensor is half of an update to a two-dimensional weight that the base model has."""
    if not tensors:
        raise AdapterError(f"adapter {directory}: {WEIGHTS_NAME} holds no tensor")
    halves: dict[str, set[str]] = {}
    for name in sorted(tensors):
        module, half = _split_name(directory, name)
        if module.rpartition(".")[2] not in targets:
            raise AdapterError(
                f"adapter {directory}: tensor {name} belongs to {module}, which is none of "
                f"target_modules ({', '.join(targets)})"
            )
        weight = base.get(f"{module}.weight")
        if weight is None or len(weight) != 2:
            raise AdapterError(
                f"adapter {directory}: tensor {name} has no counterpart: the base model has no "
                f"matrix {module}.weight: the adapter was made for another model"
            )
        expected = (rank, weight[1]) if half == "A" else (weight[0], rank)
        if tensors[name].shape != expected:
            raise AdapterError(
                f"adapter {directory}: tensor {name} has shape {list(tensors[name].shape)}, "
                f"expected {list(expected)} for rank {rank} on {module}.weight {list(weight)}: the "
                "adapter was made for another model or rank"
            )
        halves.setdefault(module, set()).add(half)
    for module, found in sorted(halves.items()):
        if found != {"A", "B"}:
            (missing,) = {"A", "B"} - found
            raise AdapterError(f"adapter {directory}: {module} has no lora_{missing}.weight")
    unused = set(targets) - {module.rpartition(".")[2] for module in halves}
    if unused:
        raise AdapterError(
            f"adapter {directory}: no tensor belongs to {sorted(unused)[0]} of target_modules"
        )


def _split_name(directory: Path, name: str) -> tuple[str, str]:
    """(module, "A" or "B") of a tensor's name."""
    for half in ("A", "B"):
        suffix = f".lora_{half}.weight"
        if name.startswith(_PREFIX) and name.endswith(suffix):
            return name[len(_PREFIX) : -len(suffix)], half
    raise AdapterError(f"adapter {directory}: tensor {name}: expected {_FORM}")


def _check_values(path: Path, tensors: dict[str, _Tensor]) -> bool:
    """Refuses infinities and NaN; True when every B is zero."""
    is_noop = True
    with _open_regular(path) as file:
        for name, tensor in sorted(tensors.items()):
            form = _FLOATS.get(tensor.dtype)
            if form is None:
                raise AdapterError(
                    f"{path}: tensor {name} is {tensor.dtype}, expected {' or '.join(_FLOATS)}"
                )
            file.seek(tensor.begin)
            position = 0
            for chunk in _chunks(file, tensor.end - tensor.begin):
                bits = np.frombuffer(chunk, dtype=form.integer)
                wrong = np.flatnonzero((bits & form.exponent_mask) == form.exponent_mask)
                if wrong.size:
                    raise AdapterError(
                        f"{path}: tensor {name} is not finite at element "
                        f"{position + int(wrong[0])}: training diverged"
                    )
                position += bits.size
                # Shifting the sign out makes minus zero a zero.
                is_noop = is_noop and not (name.endswith("lora_B.weight") and (bits << 1).any())
    return is_noop


def _open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, but no link and nothing that could block."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise AdapterError(f"{path}: not a regular file")
    return os.fdopen(descriptor, "rb")


def _chunks(file: BinaryIO, limit: int | None = None) -> Iterator[bytes]:
    """The next ``limit`` bytes (None: all), in pieces whose size every number format divides."""
    left = math.inf if limit is None else limit
    while left > 0:
        chunk = file.read(int(min(_CHUNK_BYTES, left)))
        if not chunk:
            return
        left -= len(chunk)
        yield chunk
