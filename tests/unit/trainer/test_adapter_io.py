"""Adapters on disk: whole, named by content, readable by peft."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from opsd.trainer.adapter_io import adapter_config, content_digest, save_adapter
from opsd.trainer.errors import AdapterError, ModelError
from opsd.trainer.model import fingerprint
from opsd.v1 import training_pb2

LORA = training_pb2.LoraSpec(rank=2, alpha=4, target_modules=["v_proj", "q_proj"])
STATE = {"b.lora_B.weight": torch.ones(3, 2), "a.lora_A.weight": torch.zeros(2, 3)}


def test_the_digest_is_the_documented_one(tmp_path: Path) -> None:
    digest = save_adapter(tmp_path / "adapter", adapter_config(LORA, "f" * 64), STATE)
    hashed = hashlib.sha256()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (tmp_path / "adapter" / name).read_bytes()
        hashed.update(name.encode() + b"\0" + len(data).to_bytes(8, "little") + data)
    assert digest == hashed.hexdigest() == content_digest(tmp_path / "adapter")
    (tmp_path / "adapter" / "README.md").write_text("not part of it")
    assert content_digest(tmp_path / "adapter") == digest


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    config = adapter_config(LORA, "f" * 64)
    first = save_adapter(tmp_path / "one", config, STATE)
    second = save_adapter(tmp_path / "two", config, dict(reversed(STATE.items())))
    assert first == second
    assert str(tmp_path) not in config.decode()
    assert json.loads(config)["target_modules"] == ["q_proj", "v_proj"]


def test_it_appears_whole_and_replaces_a_leftover(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "adapter_config.json").write_text("of a process that died")
    save_adapter(target, adapter_config(LORA, ""), STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert sorted(path.name for path in target.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_never_written(tmp_path: Path, value: float) -> None:
    state = STATE | {"c": torch.tensor([1.0, value])}
    with pytest.raises(AdapterError, match="c is not finite"):
        save_adapter(tmp_path / "adapter", adapter_config(LORA, ""), state)
    assert list(tmp_path.iterdir()) == []


def test_the_fingerprint_is_the_documented_one(micro_model: Path, tmp_path: Path) -> None:
    size = (micro_model / "model.safetensors").stat().st_size
    want = hashlib.sha256(
        (micro_model / "config.json").read_bytes()
        + b"\0model.safetensors\0"
        + size.to_bytes(8, "little")
    ).hexdigest()
    assert fingerprint(micro_model) == want
    with pytest.raises(ModelError, match=r"no config\.json"):
        fingerprint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        fingerprint(tmp_path)


def test_peft_reads_a_trained_adapter_and_computes_the_same(make_run: object) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from opsd.trainer.lora import StudentTeacher
    from opsd.trainer.model import load_base
    from opsd.trainer.spec import load_spec

    assert callable(make_run)
    run_json: Path = make_run()
    spec = load_spec(run_json)
    base = load_base(spec.model, torch.device("cpu"))
    network = StudentTeacher(base, spec)
    network.student.weights_P.add_(0.1)
    target = run_json.parent / "adapter"
    save_adapter(target, adapter_config(spec.lora, base.fingerprint), network.adapter_state())
    fresh = AutoModelForCausalLM.from_pretrained(spec.model.path, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(fresh, target).eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, base.causal(input_ids=ids).logits)
