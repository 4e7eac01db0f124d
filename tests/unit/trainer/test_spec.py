"""run.json is read strictly."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opsd.trainer.errors import SpecError
from opsd.trainer.spec import load_spec, peek_output_dir
from opsd.v1 import training_pb2

MakeRun = Callable[..., Path]


def test_defaults_are_filled_in(make_run: MakeRun) -> None:
    spec = load_spec(make_run())
    assert spec.spec_version == 1
    assert spec.objective.divergence == training_pb2.DIVERGENCE_FORWARD_KL
    assert spec.objective.clip_mode == training_pb2.CLIP_MODE_NONE
    assert spec.objective.teacher == training_pb2.TEACHER_BASE
    assert spec.prompt.student_template == "{problem}"
    assert "{context}" in spec.prompt.teacher_template
    assert spec.prompt.solution_section == "Reference solution: {solution}"
    assert spec.objective.method == training_pb2.METHOD_OPSD
    assert (spec.rollout.rollouts_per_problem, spec.rollout.top_p) == (1, 1.0)
    assert (spec.optim.adam_beta1, spec.optim.adam_beta2) == (0.9, 0.999)
    assert len(spec.lora.target_modules) == 7
    assert (spec.device, spec.num_processes) == ("cpu", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("spec_version", 2),
        ("run_id", ""),
        ("model.path", ""),
        ("model.dtype", "int8"),
        ("device", "tpu"),
        ("shard.sha256", ""),
        ("shard.num_pairs", 0),
        ("rollout.max_new_tokens", 0),
        ("rollout.temperature", -0.5),
        ("rollout.top_p", 1.5),
        ("lora.rank", 0),
        ("lora.alpha", 0),
        ("lora.dropout", 1.0),
        ("lora.target_modules", ["q_proj", "lm_head"]),
        ("lora.target_modules", ["q_proj", "q_proj"]),
        ("optim.num_steps", 0),
        ("optim.learning_rate", 0),
        ("optim.learning_rate", "Infinity"),
        ("optim.warmup_steps", 99),
        ("optim.final_lr_fraction", 1.1),
        ("optim.adam_beta2", 1.0),
        ("optim.weight_decay", -1),
        ("optim.max_grad_norm", "NaN"),
        ("objective.divergence", 17),
        ("prompt.student_template", "no placeholder"),
        ("prompt.student_template", "{problem} {solution}"),
        ("prompt.teacher_template", "{problem}"),
        ("prompt.teacher_template", "{context}"),
        ("prompt.student_template", "{problem} {context}"),
        ("prompt.answer_section", "the answer"),
        ("prompt.own_trace_pattern", "("),
        ("prompt.contexts", ["CONTEXT_ANSWER", "CONTEXT_ANSWER"]),
        ("prompt.contexts", ["CONTEXT_OWN_TRACE"]),
        ("prompt.contexts", ["CONTEXT_UNSPECIFIED"]),
        ("rollout.max_logprob_gap", -1),
        ("rollout.importance_cap", 0.5),
        ("rollout.max_staleness_steps", 1),
        ("rollout.sampler", 9),
        ("objective.method", 9),
        ("objective.anchor_weight", -1),
        ("objective.ratio_clip_low", 1.5),
        ("objective.ratio_clip_high", -1),
        ("teacher_check.min_gain", 1.5),
        ("curriculum.too_easy", 1.5),
        ("curriculum.teacher_floor", -0.5),
        ("parallel.sharding", 9),
        ("num_processes", 3),
        ("heartbeat_interval_s", -1),
    ],
)
def test_a_bad_value_is_named(make_run: MakeRun, field: str, value: object) -> None:
    path = make_run()
    raw: dict[str, Any] = json.loads(path.read_text())
    owner = raw
    *parents, leaf = field.split(".")
    for parent in parents:
        owner = owner.setdefault(parent, {})
    owner[leaf] = value
    path.write_text(json.dumps(raw))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.field == field
    assert f"run.json: {field} = " in str(caught.value)


@pytest.mark.parametrize(
    ("objective", "field"),
    [
        ({"clip_mode": "CLIP_MODE_CLAMP"}, "objective.clip_value"),
        ({"clip_mode": "CLIP_MODE_SCALE", "clip_value": -1}, "objective.clip_value"),
        ({"divergence": "DIVERGENCE_JSD", "jsd_beta": 1}, "objective.jsd_beta"),
        ({"teacher": "TEACHER_INCUMBENT"}, "objective.teacher_adapter_path"),
        ({"teacher": "TEACHER_EMA", "ema_decay": 1}, "objective.ema_decay"),
    ],
)
def test_what_one_choice_asks_of_another_field(
    make_run: MakeRun, objective: dict[str, object], field: str
) -> None:
    with pytest.raises(SpecError, match=field):
        load_spec(make_run(objective=objective))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective": {"method": "METHOD_GRPO"}}, "rollout.rollouts_per_problem"),
        ({"objective": {"method": "METHOD_STAR"}}, "support.address"),
        ({"curriculum": {"enabled": True}}, "support.address"),
        ({"teacher_check": {"num_problems": 4}}, "support.address"),
        (
            {"rollout": {"max_new_tokens": 8, "sampler": "SAMPLER_ENGINE"}},
            "support.address",
        ),
        (
            {"objective": {"method": "METHOD_SFT"}, "curriculum": {"enabled": True}},
            "support.address",
        ),
        (
            {
                "objective": {"method": "METHOD_SFT"},
                "curriculum": {"enabled": True},
                "support": {"address": "unix:/x"},
            },
            "curriculum.enabled",
        ),
        (
            {
                "prompt": {
                    "contexts": ["CONTEXT_ANSWER"],
                    "teacher_template": "{problem} {solution}",
                }
            },
            "prompt.teacher_template",
        ),
    ],
)
def test_what_a_method_asks_of_another_field(
    make_run: MakeRun, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(make_run(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"learning_rate": 1}', "learning_rate"),
        ('{"optim": {"lr": 1}}', "lr"),
        ('{"seed": "many"}', "seed"),
        ('{"seed": -1}', "seed"),
        ("{", "is not a RunSpec"),
        ('{"run_id": "\\ud800"}', "run"),
    ],
)
def test_what_is_not_a_spec_is_refused(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SpecError, match=named):
        load_spec(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        load_spec(tmp_path / "run.json")


def test_errors_survive_pickling() -> None:
    error = SpecError("optim.num_steps", 0, "must be at least 1")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "run.json: optim.num_steps = 0: must be at least 1"


def test_the_place_for_the_result_is_found_in_a_wrong_spec(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"output_dir": "/nowhere/at/all", "nonsense": 1}))
    assert peek_output_dir(path) == tmp_path
    elsewhere = tmp_path / "out"
    elsewhere.mkdir()
    path.write_text(json.dumps({"output_dir": str(elsewhere), "nonsense": 1}))
    assert peek_output_dir(path) == elsewhere
