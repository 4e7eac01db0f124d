"""What is wrong with an adapter's files is found and named before the engine sees them."""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from opsd.daemon.adapters.files import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterFacts,
    base_shapes,
    content_digest,
    model_fingerprint,
    verify_adapter_dir,
)
from opsd.daemon.errors import AdapterError, ConfigError

HIDDEN, KV, FFN, RANK = 16, 8, 24, 4
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KV, HIDDEN),
    "mlp.down_proj": (HIDDEN, FFN),
}
PREFIX = "base_model.model."
Tensors = dict[str, np.ndarray[Any, Any]]


def module(layer: int, name: str) -> str:
    return f"model.layers.{layer}.{name}"


def adapter_tensors(rank: int = RANK) -> Tensors:
    rng = np.random.default_rng(0)
    tensors: Tensors = {}
    for layer in range(2):
        for name, (rows, columns) in MODULES.items():
            path = f"{PREFIX}{module(layer, name)}"
            tensors[f"{path}.lora_A.weight"] = rng.normal(size=(rank, columns)).astype(np.float32)
            tensors[f"{path}.lora_B.weight"] = rng.normal(size=(rows, rank)).astype(np.float32)
    return tensors


def adapter_config(**changes: object) -> dict[str, object]:
    config: dict[str, object] = {
        "base_model_name_or_path": "f" * 64,
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
        "bias": "none",
        "modules_to_save": None,
        "use_dora": False,
        "rank_pattern": {},
    }
    return {key: value for key, value in {**config, **changes}.items() if value != "absent"}


def write_adapter(
    directory: Path, *, tensors: Tensors | None = None, config: dict[str, object] | None = None
) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file(adapter_tensors() if tensors is None else tensors, directory / WEIGHTS_NAME)
    (directory / CONFIG_NAME).write_text(json.dumps(config or adapter_config()))
    return directory


def write_model(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text('{"model_type": "qwen3"}')
    for layer in range(2):
        tensors: Tensors = {
            f"{module(layer, name)}.weight": np.zeros(shape, np.float32)
            for name, shape in MODULES.items()
        }
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = np.zeros(HIDDEN, np.float32)
        save_file(tensors, directory / f"model-{layer}.safetensors")
    return directory


@dataclass
class Workplace:
    model: Path
    adapter: Path

    def verify(self, *, sha256: str | None = None, max_rank: int = 8) -> AdapterFacts:
        return verify_adapter_dir(
            self.adapter,
            expected_sha256=content_digest(self.adapter) if sha256 is None else sha256,
            model_dir=self.model,
            max_rank=max_rank,
        )


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    return Workplace(write_model(tmp_path / "model"), write_adapter(tmp_path / "adapter"))


def test_a_sound_adapter_is_described(place: Workplace) -> None:
    facts = place.verify()
    assert facts == AdapterFacts(
        sha256=content_digest(place.adapter),
        rank=RANK,
        alpha=8.0,
        size_bytes=sum(file.stat().st_size for file in place.adapter.iterdir()),
        target_modules=("down_proj", "k_proj", "q_proj"),
        num_tensors=12,
        is_noop=False,
        base_model="f" * 64,
    )
    assert place.verify(sha256=facts.sha256.upper()) == facts


def test_the_digest_is_the_documented_one(place: Workplace) -> None:
    expected = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (place.adapter / name).read_bytes()
        expected.update(name.encode() + b"\0" + struct.pack("<Q", len(data)) + data)
    assert content_digest(place.adapter) == expected.hexdigest()


def refused(place: Workplace, *said: str, sha256: str | None = None) -> None:
    with pytest.raises(AdapterError) as caught:
        place.verify(sha256=sha256)
    for part in said:
        assert part in str(caught.value)


def test_other_bytes_are_refused(place: Workplace) -> None:
    sha256 = content_digest(place.adapter)
    write_adapter(place.adapter, config=adapter_config(lora_alpha=9))
    refused(place, f"content digest is {content_digest(place.adapter)}", sha256, sha256=sha256)


def _pickle(directory: Path) -> None:
    (directory / "adapter_model.bin").write_bytes(b"\x80")


def _hidden(directory: Path) -> None:
    (directory / ".hook.py").touch()


def _no_weights(directory: Path) -> None:
    (directory / WEIGHTS_NAME).unlink()


def _empty_config(directory: Path) -> None:
    (directory / CONFIG_NAME).write_bytes(b"")


def _huge_config(directory: Path) -> None:
    os.truncate(directory / CONFIG_NAME, 2 << 20)


def _link(directory: Path) -> None:
    target = directory.parent / "elsewhere"
    (directory / WEIGHTS_NAME).rename(target)
    (directory / WEIGHTS_NAME).symlink_to(target)


def _pipe(directory: Path) -> None:
    (directory / WEIGHTS_NAME).unlink()
    os.mkfifo(directory / WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_pickle, "unexpected 'adapter_model.bin'"),
        (_hidden, "unexpected '.hook.py'"),
        (_no_weights, "adapter_model.safetensors is missing"),
        (_empty_config, "adapter_config.json has 0 bytes"),
        (_huge_config, "adapter_config.json has 2097152 bytes"),
        (_link, "adapter_model.safetensors is not a regular file"),
        (_pipe, "adapter_model.safetensors is not a regular file"),
    ],
)
def test_anything_but_two_regular_files_is_refused(
    place: Workplace, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(place.adapter)
    refused(place, said, sha256="0" * 64)


def test_a_link_to_a_directory_and_a_missing_one_are_refused(
    place: Workplace, tmp_path: Path
) -> None:
    sha256 = content_digest(place.adapter)
    (tmp_path / "link").symlink_to(place.adapter)
    for path in (tmp_path / "link", tmp_path / "none", place.adapter / CONFIG_NAME):
        place.adapter = path
        refused(place, "not a directory", sha256=sha256)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"r": 9}, "r is 9, expected 1 to 8 (engine.max_lora_rank)"),
        ({"r": 0}, "r is 0"),
        ({"r": True}, "r is True"),
        ({"r": "absent"}, "r is None"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a positive number"),
        ({"lora_alpha": 10**400}, "lora_alpha is"),
        ({"lora_alpha": -1}, "lora_alpha is"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear'"),
        ({"target_modules": []}, "target_modules is []"),
        ({"target_modules": [1]}, "target_modules is [1]"),
        ({"use_dora": True}, "use_dora is True, only False (plain LoRA) is served"),
        ({"use_rslora": True}, "use_rslora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is {'q_proj': 2}"),
        ({"target_modules": ["q_proj", "k_proj"]}, "down_proj, which is none of target_modules"),
        (
            {"target_modules": ["q_proj", "k_proj", "down_proj", "up_proj"]},
            "no tensor belongs to up_proj of target_modules",
        ),
    ],
)
def test_configurations_that_are_not_plain_lora_are_refused(
    place: Workplace, change: dict[str, object], said: str
) -> None:
    write_adapter(place.adapter, config=adapter_config(**change))
    refused(place, said)


@pytest.mark.parametrize("text", [b"{", b"[1]", b"\xff", b"[" * 100_000, b"1" * 5000])
def test_a_configuration_that_is_no_object_is_refused(place: Workplace, text: bytes) -> None:
    (place.adapter / CONFIG_NAME).write_bytes(text)
    refused(place, CONFIG_NAME)


Q_A = f"{PREFIX}{module(0, 'self_attn.q_proj')}.lora_A.weight"
Q_B = f"{PREFIX}{module(0, 'self_attn.q_proj')}.lora_B.weight"


def _foreign_width(tensors: Tensors) -> None:
    tensors[Q_A] = np.zeros((RANK, HIDDEN * 2), np.float32)


def _foreign_layer(tensors: Tensors) -> None:
    tensors[Q_A.replace("layers.0", "layers.7")] = tensors[Q_A]


def _transposed(tensors: Tensors) -> None:
    tensors[Q_B] = tensors[Q_B].T.copy()


def _half(tensors: Tensors) -> None:
    del tensors[Q_B]


def _odd_name(tensors: Tensors) -> None:
    tensors["evil"] = tensors[Q_A]


def _embedding(tensors: Tensors) -> None:
    tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = tensors[Q_A]


def _integers(tensors: Tensors) -> None:
    tensors[Q_A] = np.zeros((RANK, HIDDEN), np.int32)


def _nan(tensors: Tensors) -> None:
    tensors[Q_B][3, 2] = np.nan


def _infinite(tensors: Tensors) -> None:
    tensors[Q_A][0, 5] = -np.inf


def _none(tensors: Tensors) -> None:
    tensors.clear()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_foreign_width, [Q_A, "has shape [4, 32], expected [4, 16]", "made for another model"]),
        (_foreign_layer, ["no matrix model.layers.7.self_attn.q_proj.weight", "another model"]),
        (_transposed, [Q_B, "has shape [4, 16], expected [16, 4]"]),
        (_half, ["model.layers.0.self_attn.q_proj has no lora_B.weight"]),
        (_odd_name, ["tensor evil: expected base_model.model.<module>.lora_A.weight"]),
        (_embedding, ["lora_embedding_A: expected base_model.model.<module>"]),
        (_integers, [Q_A, "is I32, expected F64 or F32 or F16 or BF16"]),
        (_nan, [Q_B, "is not finite at element 14", "training diverged"]),
        (_infinite, [Q_A, "is not finite at element 5"]),
        (_none, ["holds no tensor"]),
    ],
)
def test_foreign_and_broken_tensors_are_named(
    place: Workplace, spoil: Callable[[Tensors], None], said: list[str]
) -> None:
    tensors = adapter_tensors()
    spoil(tensors)
    write_adapter(place.adapter, tensors=tensors)
    refused(place, *said)


def test_rank_of_the_tensors_is_that_of_the_configuration(place: Workplace) -> None:
    write_adapter(place.adapter, tensors=adapter_tensors(rank=8))
    refused(place, "expected [4, 24] for rank 4")


def test_an_adapter_that_changes_nothing_is_flagged(place: Workplace) -> None:
    tensors = adapter_tensors()
    for name in tensors:
        if "lora_B" in name:
            tensors[name] = -np.zeros_like(tensors[name])
    write_adapter(place.adapter, tensors=tensors)
    assert place.verify().is_noop
    tensors[Q_B][0, 0] = 1e-30
    write_adapter(place.adapter, tensors=tensors)
    assert not place.verify().is_noop


def write_raw(path: Path, dtype: str, bits: np.ndarray[Any, Any]) -> None:
    """All tensors in one format, given by the bits of each element of the first one."""
    header: dict[str, Any] = {}
    body = b""
    for name, tensor in sorted(adapter_tensors().items()):
        raw = np.ones(tensor.shape, bits.dtype)
        if name == Q_A:
            raw.reshape(-1)[: bits.size] = bits
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + raw.nbytes],
        }
        body += raw.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


@pytest.mark.parametrize(
    ("dtype", "width", "largest", "infinity", "nan"),
    [
        ("BF16", "<u2", 0x7F7F, 0x7F80, 0xFFC1),
        ("F16", "<u2", 0x7BFF, 0xFC00, 0x7E00),
        ("F32", "<u4", 0x7F7FFFFF, 0xFF800000, 0x7FC00000),
        ("F64", "<u8", 0x7FEFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000),
    ],
)
def test_every_float_format_is_read(
    place: Workplace, dtype: str, width: str, largest: int, infinity: int, nan: int
) -> None:
    weights = place.adapter / WEIGHTS_NAME
    write_raw(weights, dtype, np.array([largest, 0, 1], width))
    assert not place.verify().is_noop
    for bad in (infinity, nan):
        write_raw(weights, dtype, np.array([largest, bad], width))
        refused(place, f"{Q_A} is not finite at element 1")


def test_values_past_the_first_chunk_are_read(tmp_path: Path) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    model.mkdir()
    (model / "config.json").write_text("{}")
    save_file({"w.q_proj.weight": np.zeros((2, 300_000), np.float16)}, model / "m.safetensors")
    tensors = {
        f"{PREFIX}w.q_proj.lora_A.weight": np.zeros((RANK, 300_000), np.float32),
        f"{PREFIX}w.q_proj.lora_B.weight": np.zeros((2, RANK), np.float32),
    }
    tensors[f"{PREFIX}w.q_proj.lora_A.weight"][-1, -1] = np.nan
    write_adapter(adapter, tensors=tensors, config=adapter_config(target_modules=["q_proj"]))
    refused(Workplace(model, adapter), "is not finite at element 1199999")


@pytest.mark.parametrize("length", [0, 3, 1 << 40, (1 << 64) - 1])
def test_a_lying_header_length_is_refused(place: Workplace, length: int) -> None:
    weights = place.adapter / WEIGHTS_NAME
    weights.write_bytes(struct.pack("<Q", length) + weights.read_bytes()[8:])
    refused(place, "not a valid safetensors file")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    file=st.sampled_from([CONFIG_NAME, WEIGHTS_NAME]),
    at=st.integers(0, 1 << 20),
    noise=st.binary(min_size=1, max_size=16),
    cut=st.booleans(),
)
def test_changed_bytes_never_pass_and_never_raise_anything_else(
    place: Workplace, file: str, at: int, noise: bytes, cut: bool
) -> None:
    write_adapter(place.adapter)
    sha256 = content_digest(place.adapter)
    path = place.adapter / file
    data = path.read_bytes()
    # Half of the damage falls into the first bytes, where the structure is.
    at %= len(data) if at % 2 else min(len(data), 200)
    changed = data[:at] if cut else data[:at] + noise + data[at + len(noise) :]
    if changed == data:
        return
    path.write_bytes(changed)
    with pytest.raises(AdapterError):
        place.verify(sha256=sha256)
    # A writer that digests its own damaged files is caught by the structure, or wrote other values.
    try:
        place.verify(sha256=content_digest(place.adapter) if changed else "0" * 64)
    except AdapterError:
        return
    assert len(changed) == len(data) or file == CONFIG_NAME


def test_a_damaged_base_model_is_named(place: Workplace) -> None:
    (place.model / "model-1.safetensors").write_bytes(b"junk")
    refused(place, "model-1.safetensors: not a valid safetensors file")
    for file in place.model.glob("*.safetensors"):
        file.unlink()
    refused(place, "no *.safetensors file to compare the adapter with")


def test_base_shapes_are_those_of_all_shards(place: Workplace) -> None:
    shapes = base_shapes(place.model)
    assert len(shapes) == 8
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (KV, HIDDEN)


def test_fingerprint_follows_config_and_weight_sizes(place: Workplace, tmp_path: Path) -> None:
    before = model_fingerprint(place.model)
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for file in place.model.iterdir():
        (linked / file.name).symlink_to(file)
    assert model_fingerprint(linked) == before
    with (place.model / "model-0.safetensors").open("ab") as weights:
        weights.write(b"\0")
    assert model_fingerprint(place.model) != before
    (place.model / "config.json").write_text("{}")
    for path in place.model.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"has no \*.safetensors file"):
        model_fingerprint(place.model)
    (place.model / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"model.path: .* has no config.json"):
        model_fingerprint(place.model)


def test_trainer_and_daemon_agree(place: Workplace) -> None:
    from opsd.trainer.adapter_io import content_digest as trainer_digest
    from opsd.trainer.model import fingerprint as trainer_fingerprint

    assert trainer_digest(place.adapter) == content_digest(place.adapter)
    assert trainer_fingerprint(place.model) == model_fingerprint(place.model)


def test_what_the_trainer_writes_is_admissible(place: Workplace, tmp_path: Path) -> None:
    import torch

    from opsd.trainer.adapter_io import adapter_config as trainer_config
    from opsd.trainer.adapter_io import save_adapter
    from opsd.v1 import training_pb2

    lora = training_pb2.LoraSpec(
        rank=RANK, alpha=8.0, target_modules=["q_proj", "k_proj", "down_proj"]
    )
    fingerprint = model_fingerprint(place.model)
    state = {name: torch.from_numpy(tensor) for name, tensor in adapter_tensors().items()}
    place.adapter = tmp_path / "written"
    sha256 = save_adapter(place.adapter, trainer_config(lora, fingerprint), state)
    facts = place.verify(sha256=sha256)
    assert (facts.rank, facts.alpha, facts.base_model) == (RANK, 8.0, fingerprint)
