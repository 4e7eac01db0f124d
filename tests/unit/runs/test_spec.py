"""run.json: what is configured, what a trigger may change, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from opsd.daemon.config.schema import PoolConfig
from opsd.daemon.config.training import TrainingConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.runs.overrides import FORBIDDEN
from opsd.daemon.runs.spec import (
    ModelFacts,
    SpecBuilder,
    Starting,
    read_spec,
    resolve_device,
    write_spec,
)
from opsd.v1 import training_pb2

MODEL = ModelFacts(path="/m", dtype="bfloat16", fingerprint="f" * 64, max_lora_rank=64)


def builder(**training: Any) -> SpecBuilder:
    return SpecBuilder(
        TrainingConfig.model_validate(training),
        PoolConfig(device="cpu", num_devices=2, threads_per_process=3),
        MODEL,
        stall_timeout_s=300.0,
    )


def build(
    overrides: str = "{}", starting: Starting | None = None, **training: Any
) -> training_pb2.RunSpec:
    return builder(**training).build(
        run_id="r",
        run_dir=Path("/runs/r"),
        shard=training_pb2.ShardRef(path="/runs/r/shard.jsonl", sha256="0" * 64, num_pairs=7),
        overrides_json=overrides,
        starting=starting or Starting(),
    )


def test_a_spec_holds_the_configuration_the_model_and_the_pool() -> None:
    spec = build(seed=5, optim={"num_steps": 9})
    assert (spec.spec_version, spec.run_id, spec.output_dir) == (1, "r", "/runs/r")
    assert (spec.model.path, spec.model.dtype) == ("/m", "bfloat16")
    assert (spec.device, spec.num_processes, spec.threads_per_process) == ("cpu", 2, 3)
    assert (spec.seed, spec.optim.num_steps, spec.shard.num_pairs) == (5, 9, 7)
    assert spec.objective.divergence == training_pb2.DIVERGENCE_FORWARD_KL
    assert spec.objective.clip_mode == training_pb2.CLIP_MODE_CLAMP
    assert list(spec.lora.target_modules)[:2] == ["q_proj", "k_proj"]


def test_overrides_are_merged_field_by_field() -> None:
    overrides = {
        "optim": {"num_steps": 12, "maxGradNorm": 0},
        "objective": {"clip_mode": "CLIP_MODE_SCALE"},
        "lora": {"target_modules": ["q_proj"]},
        "prompt": {"student_thinking": True},
        "seed": "77",
    }
    spec = build(json.dumps(overrides), optim={"learning_rate": 0.5})
    assert (spec.optim.num_steps, spec.optim.learning_rate) == (12, 0.5)
    assert spec.optim.max_grad_norm == 0.0  # named, so zero counts
    assert spec.objective.clip_mode == training_pb2.CLIP_MODE_SCALE
    assert spec.objective.clip_value == 0.05
    assert list(spec.lora.target_modules) == ["q_proj"]
    assert spec.prompt.student_thinking
    assert spec.seed == 77


@pytest.mark.parametrize("field", FORBIDDEN)
def test_what_is_the_daemons_cannot_be_overridden(field: str) -> None:
    leaf: Any = {"shard": {}, "model": {"path": "/x"}, "support": {"address": "x"}}.get(
        field, 1 if "num" in field else "x"
    )
    leaf = 1 if field in ("spec_version", "threads_per_process") else leaf
    for name in reversed(field.split(".")):
        leaf = {name: leaf}
    with pytest.raises(InvalidInputError, match=f"{field} cannot be set: {FORBIDDEN[field]}"):
        build(json.dumps(leaf))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ('{"optim": {"num_steps": 0}}', r"optim.num_steps \(Optimiser steps.*got 0"),
        ('{"rollout": {"top_p": 1.5}}', "rollout.top_p .*less than or equal to 1"),
        ('{"optim": {"learning_rate": "NaN"}}', "optim.learning_rate must be a finite number"),
        ('{"optim": {"learning_rate": "Infinity"}}', "must be a finite number"),
        ('{"optim": {"num_steps": -1}}', "not a RunSpec"),
        ('{"optim": {"nmu_steps": 1}}', "nmu_steps"),
        ('{"objective": {"teacher": 0}}', "objective.teacher is unspecified"),
        ("[1]", "a JSON object"),
        ("{", "not a RunSpec"),
        ('{"lora": {"rank": 128}}', "lora.rank is 128, but the engine serves ranks up to 64"),
        ('{"heartbeat_interval_s": 300}', "runs.stall_timeout_s = 300 is killed"),
        ('{"optim": {"num_steps": 3}}', "optim.warmup_steps 5 is more than optim.num_steps"),
        ('{"optim": {"adam_beta1": 0}}', "adam_beta1 is 0: set it above 0"),
        (
            '{"objective": {"divergence": "DIVERGENCE_POLICY_GRADIENT", "top_k": 4}}',
            "objective.top_k 4 does not go",
        ),
        ('{"objective": {"epistemic_words": ["hmm", " "]}}', "epistemic_words holds ' '"),
        ('{"objective": {"epistemic_weight": 1.5}}', "epistemic_weight .*less than or equal to 1"),
        ('{"prompt": {"teacher_template": "{problem}"}}', "teacher_template has none of {context}"),
        ('{"optim": {"problems_per_step": 7}}', "7 sequences a step, which pool.num_devices"),
        ('{"prompt": {"student_template": "solve!"}}', "student_template lacks {problem}"),
        ('{"prompt": {"student_template": "{problem}{solution}"}}', "never sees it"),
    ],
)
def test_bad_overrides_name_the_field_and_the_fix(overrides: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        builder().resolve(overrides)


def test_words_of_doubt_and_the_forms_of_the_loss_reach_the_trainer() -> None:
    objective = build().objective
    assert "wait" in objective.epistemic_words
    assert objective.HasField("epistemic_weight")
    assert objective.epistemic_weight == 1
    shielded = build(
        '{"objective": {"epistemic_weight": 0, "epistemic_words": ["ähm"], "top_k": 50}}'
    ).objective
    assert shielded.HasField("epistemic_weight")
    assert (shielded.epistemic_weight, shielded.top_k) == (0, 50)
    assert list(shielded.epistemic_words) == ["ähm"]


def test_the_incumbent_teaches_or_goes_on_only_where_there_is_one() -> None:
    wanted: dict[str, Any] = {
        "objective": {"teacher": "incumbent"},
        "continue_from_incumbent": True,
    }
    spec = build(starting=Starting("opsd-1", "/adapters/1"), **wanted)
    assert spec.objective.teacher == training_pb2.TEACHER_INCUMBENT
    assert spec.objective.teacher_adapter_path == spec.initial_adapter_path == "/adapters/1"

    spec = build(starting=Starting(), **wanted)
    assert spec.objective.teacher == training_pb2.TEACHER_BASE
    assert spec.objective.teacher_adapter_path == spec.initial_adapter_path == ""

    spec = build(starting=Starting("opsd-1", "/adapters/1"))
    assert spec.objective.teacher_adapter_path == spec.initial_adapter_path == ""


def test_run_json_is_canonical_and_whole(tmp_path: Path) -> None:
    spec = build()
    text = write_spec(spec, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    written = (tmp_path / "run.json").read_text()
    assert json_format.Parse(written, training_pb2.RunSpec()) == spec
    assert read_spec(text) == spec
    assert json.loads(written)["optim"]["weight_decay"] == 0.0  # zeros are said, too


def test_auto_takes_no_hidden_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cuda") == "cuda"
