"""`run.json`: the resolved spec of one run, read strictly, defaults filled in, every value checked.

The wire form is the canonical proto3 JSON of `opsd.v1.RunSpec`; a field that proto3 cannot tell
from absent (0, "") takes the default listed in `_DEFAULTS`.
"""

import json
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from opsd.trainer.errors import SpecError
from opsd.v1 import training_pb2

SPEC_VERSION = 1
DTYPES = ("float32", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")
DEFAULT_TARGET_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
DEFAULT_STUDENT_TEMPLATE = "{problem}"
DEFAULT_TEACHER_TEMPLATE = "{problem}\n\nReference solution: {solution}\nNow solve it your own way."

_DEFAULTS: dict[str, Any] = {
    "spec_version": SPEC_VERSION,
    "model.dtype": "float32",
    "prompt.student_template": DEFAULT_STUDENT_TEMPLATE,
    "prompt.teacher_template": DEFAULT_TEACHER_TEMPLATE,
    "rollout.rollouts_per_problem": 1,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "objective.divergence": training_pb2.DIVERGENCE_FORWARD_KL,
    "objective.jsd_beta": 0.5,
    "objective.clip_mode": training_pb2.CLIP_MODE_NONE,
    "objective.teacher": training_pb2.TEACHER_BASE,
    "optim.micro_batch_size": 8,
    "optim.adam_beta1": 0.9,
    "optim.adam_beta2": 0.999,
    "optim.adam_eps": 1e-8,
    "heartbeat_interval_s": 5.0,
    "device": "cpu",
    "num_processes": 1,
}


def load_spec(path: Path) -> training_pb2.RunSpec:
    """Reads, fills in and checks `run.json`; raises `SpecError` naming field, value and fix."""
    spec = training_pb2.RunSpec()
    try:
        json_format.Parse(path.read_text(encoding="utf-8"), spec)
    except OSError as error:
        raise SpecError("path", str(path), f"cannot be read: {error.strerror}") from error
    except (json_format.ParseError, ValueError) as error:
        raise SpecError("path", str(path), f"is not a RunSpec: {error}") from error
    fill_defaults(spec)
    check(spec)
    return spec


def peek_output_dir(path: Path) -> Path:
    """Where a result must go even if the spec is wrong: its output_dir, else its own directory."""
    try:
        output_dir = json.loads(path.read_text(encoding="utf-8"))["output_dir"]
        if output_dir and os.path.isdir(output_dir):
            return Path(output_dir)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return path.resolve().parent


def fill_defaults(spec: training_pb2.RunSpec) -> None:
    """Replaces absent values by their defaults, in place."""
    for name, default in _DEFAULTS.items():
        owner, field = _owner(spec, name)
        if not getattr(owner, field):
            setattr(owner, field, default)
    if not spec.objective.HasField("epistemic_weight"):
        spec.objective.epistemic_weight = 1.0
    if not spec.lora.target_modules:
        spec.lora.target_modules.extend(DEFAULT_TARGET_MODULES)


def check(spec: training_pb2.RunSpec) -> None:
    """Raises `SpecError` for the first value that cannot be trained with."""
    _check_finite(spec)
    _require(
        spec,
        "spec_version",
        spec.spec_version == SPEC_VERSION,
        f"this trainer reads {SPEC_VERSION}",
    )
    for name in ("run_id", "model.path", "shard.path", "shard.sha256", "output_dir"):
        _require(spec, name, bool(_value(spec, name)), "must be set")
    _one_of(spec, "model.dtype", DTYPES)
    _one_of(spec, "device", DEVICES)
    _at_least_one(
        spec,
        "shard.num_pairs",
        "rollout.max_new_tokens",
        "lora.rank",
        "optim.num_steps",
        "optim.problems_per_step",
    )
    _above_zero(
        spec,
        "rollout.temperature",
        "lora.alpha",
        "optim.learning_rate",
        "optim.adam_eps",
        "heartbeat_interval_s",
    )
    _require(spec, "rollout.top_p", 0 < spec.rollout.top_p <= 1, "must lie in (0, 1]; 1 is off")
    _require(spec, "lora.dropout", 0 <= spec.lora.dropout < 1, "must lie in [0, 1)")
    for name in ("optim.adam_beta1", "optim.adam_beta2"):
        _require(spec, name, 0 < _value(spec, name) < 1, "must lie in (0, 1)")
    for name in ("optim.weight_decay", "optim.max_grad_norm"):
        _require(spec, name, _value(spec, name) >= 0, "must not be negative; 0 is off")
    _require(
        spec,
        "optim.final_lr_fraction",
        0 <= spec.optim.final_lr_fraction <= 1,
        "must lie in [0, 1]",
    )
    _require(
        spec,
        "optim.warmup_steps",
        spec.optim.warmup_steps <= spec.optim.num_steps,
        f"must not exceed optim.num_steps ({spec.optim.num_steps})",
    )
    _check_objective(spec)
    _check_templates(spec)
    _check_target_modules(spec)


def _check_objective(spec: training_pb2.RunSpec) -> None:
    objective = spec.objective
    for name, kind in (
        ("objective.divergence", training_pb2.Divergence),
        ("objective.clip_mode", training_pb2.ClipMode),
        ("objective.teacher", training_pb2.Teacher),
    ):
        _require(spec, name, _value(spec, name) in kind.values(), "is not a known value")
    _require(
        spec,
        "objective.jsd_beta",
        objective.divergence != training_pb2.DIVERGENCE_JSD or 0 < objective.jsd_beta < 1,
        "must lie inside (0, 1) for DIVERGENCE_JSD",
    )
    _require(
        spec,
        "objective.top_k",
        objective.divergence != training_pb2.DIVERGENCE_POLICY_GRADIENT or objective.top_k == 0,
        "must be 0 for DIVERGENCE_POLICY_GRADIENT, which looks at the sampled token only",
    )
    _require(
        spec,
        "objective.epistemic_weight",
        0 <= objective.epistemic_weight <= 1,
        "must lie in [0, 1]; 1 treats these tokens as all others",
    )
    for word in objective.epistemic_words:
        _require(
            spec,
            "objective.epistemic_words",
            bool(re.search(r"\w", word)) and word == word.strip(),
            f"must be words or phrases without space around them, not {word!r}",
        )
    _require(
        spec,
        "objective.clip_value",
        objective.clip_mode == training_pb2.CLIP_MODE_NONE or objective.clip_value > 0,
        "must be above 0 nats, or set objective.clip_mode to CLIP_MODE_NONE",
    )
    _require(
        spec,
        "objective.teacher_adapter_path",
        objective.teacher != training_pb2.TEACHER_INCUMBENT or bool(objective.teacher_adapter_path),
        "must be set for TEACHER_INCUMBENT",
    )
    _require(
        spec,
        "objective.ema_decay",
        objective.teacher != training_pb2.TEACHER_EMA or 0 <= objective.ema_decay < 1,
        "must lie in [0, 1) for TEACHER_EMA",
    )


def _check_templates(spec: training_pb2.RunSpec) -> None:
    _require(
        spec,
        "prompt.student_template",
        "{problem}" in spec.prompt.student_template,
        "must contain {problem}",
    )
    _require(
        spec,
        "prompt.student_template",
        "{solution}" not in spec.prompt.student_template,
        "must not contain {solution}: the student never sees it",
    )
    for placeholder in ("{problem}", "{solution}"):
        _require(
            spec,
            "prompt.teacher_template",
            placeholder in spec.prompt.teacher_template,
            f"must contain {placeholder}",
        )


def _check_target_modules(spec: training_pb2.RunSpec) -> None:
    names = list(spec.lora.target_modules)
    _require(spec, "lora.target_modules", len(set(names)) == len(names), "names one twice")
    for name in names:
        # The loss multiplies hidden states by the frozen head that teacher and student share.
        _require(
            spec,
            "lora.target_modules",
            name not in ("lm_head", "embed_tokens"),
            f"must not contain {name}: the head is shared with the teacher",
        )


def _check_finite(message: Message, prefix: str = "") -> None:
    for field, value in message.ListFields():
        if isinstance(value, Message):
            _check_finite(value, f"{prefix}{field.name}.")
        elif isinstance(value, float) and not math.isfinite(value):
            raise SpecError(f"{prefix}{field.name}", value, "must be finite")


def _owner(spec: training_pb2.RunSpec, name: str) -> tuple[Any, str]:
    owner: Any = spec
    *parents, field = name.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, field


def _value(spec: training_pb2.RunSpec, name: str) -> Any:
    owner, field = _owner(spec, name)
    value = getattr(owner, field)
    repeated = ("lora.target_modules", "objective.epistemic_words")
    return list(value) if name in repeated else value


def _require(spec: training_pb2.RunSpec, name: str, holds: bool, fix: str) -> None:
    if not holds:
        raise SpecError(name, _value(spec, name), fix)


def _one_of(spec: training_pb2.RunSpec, name: str, choices: Iterable[str]) -> None:
    _require(spec, name, _value(spec, name) in choices, f"must be one of {', '.join(choices)}")


def _at_least_one(spec: training_pb2.RunSpec, *names: str) -> None:
    for name in names:
        _require(spec, name, _value(spec, name) >= 1, "must be at least 1")


def _above_zero(spec: training_pb2.RunSpec, *names: str) -> None:
    for name in names:
        _require(spec, name, _value(spec, name) > 0, "must be above 0")
