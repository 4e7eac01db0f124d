"""`run.json`: the resolved spec of one run, read strictly, defaults filled in, every value checked.

The wire form is the canonical proto3 JSON of `opsd.v1.RunSpec`; a field that proto3 cannot tell
from absent (0, "") takes the default listed in `_DEFAULTS`.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from opsd.trainer.errors import SpecError
from opsd.trainer.spec_fields import above_zero, at_least_one, one_of, owner, require, value
from opsd.trainer.spec_rules import (
    check_method,
    check_objective,
    check_parts,
    check_prompt,
    check_rollout,
)
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
DEFAULT_TEACHER_TEMPLATE = "{problem}\n\n{context}\nNow solve it your own way."

_DEFAULTS: dict[str, Any] = {
    "spec_version": SPEC_VERSION,
    "model.dtype": "float32",
    "prompt.student_template": DEFAULT_STUDENT_TEMPLATE,
    "prompt.teacher_template": DEFAULT_TEACHER_TEMPLATE,
    "prompt.solution_section": "Reference solution: {solution}",
    "prompt.answer_section": "The answer is: {answer}",
    "prompt.own_trace_section": "A correct solution of yours: {own_trace}",
    "prompt.feedback_section": "An earlier attempt was wrong: {feedback}",
    "rollout.rollouts_per_problem": 1,
    "rollout.temperature": 1.0,
    "rollout.top_p": 1.0,
    "rollout.sampler": training_pb2.SAMPLER_LOCAL,
    "rollout.max_logprob_gap": 0.1,
    "rollout.importance_cap": 2.0,
    "objective.method": training_pb2.METHOD_OPSD,
    "objective.ratio_clip_low": 0.2,
    "objective.ratio_clip_high": 0.2,
    "rollout.pool_memory_fraction": 0.4,
    "objective.divergence": training_pb2.DIVERGENCE_FORWARD_KL,
    "objective.jsd_beta": 0.5,
    "objective.clip_mode": training_pb2.CLIP_MODE_NONE,
    "objective.teacher": training_pb2.TEACHER_BASE,
    "optim.micro_batch_size": 8,
    "optim.adam_beta1": 0.9,
    "optim.adam_beta2": 0.999,
    "optim.adam_eps": 1e-8,
    "curriculum.min_attempts": 4,
    "curriculum.too_easy": 1.0,
    "curriculum.revisit_epochs": 4,
    "token_audit.every_steps": 1,
    "parallel.sharding": training_pb2.SHARDING_NONE,
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
        holder, field = owner(spec, name)
        if not getattr(holder, field):
            setattr(holder, field, default)
    if not spec.objective.HasField("epistemic_weight"):
        spec.objective.epistemic_weight = 1.0
    if not spec.lora.target_modules:
        spec.lora.target_modules.extend(DEFAULT_TARGET_MODULES)


def check(spec: training_pb2.RunSpec) -> None:
    """Raises `SpecError` for the first value that cannot be trained with."""
    _check_finite(spec)
    require(
        spec,
        "spec_version",
        spec.spec_version == SPEC_VERSION,
        f"this trainer reads {SPEC_VERSION}",
    )
    for name in ("run_id", "model.path", "shard.path", "shard.sha256", "output_dir"):
        require(spec, name, bool(value(spec, name)), "must be set")
    one_of(spec, "model.dtype", DTYPES)
    one_of(spec, "device", DEVICES)
    at_least_one(
        spec,
        "shard.num_pairs",
        "rollout.max_new_tokens",
        "lora.rank",
        "optim.num_steps",
        "optim.problems_per_step",
    )
    above_zero(
        spec,
        "rollout.temperature",
        "lora.alpha",
        "optim.learning_rate",
        "optim.adam_eps",
        "heartbeat_interval_s",
    )
    require(spec, "rollout.top_p", 0 < spec.rollout.top_p <= 1, "must lie in (0, 1]; 1 is off")
    require(spec, "lora.dropout", 0 <= spec.lora.dropout < 1, "must lie in [0, 1)")
    for name in ("optim.adam_beta1", "optim.adam_beta2"):
        require(spec, name, 0 < value(spec, name) < 1, "must lie in (0, 1)")
    for name in ("optim.weight_decay", "optim.max_grad_norm"):
        require(spec, name, value(spec, name) >= 0, "must not be negative; 0 is off")
    require(
        spec,
        "optim.final_lr_fraction",
        0 <= spec.optim.final_lr_fraction <= 1,
        "must lie in [0, 1]",
    )
    require(
        spec,
        "optim.warmup_steps",
        spec.optim.warmup_steps <= spec.optim.num_steps,
        f"must not exceed optim.num_steps ({spec.optim.num_steps})",
    )
    check_objective(spec)
    check_method(spec)
    check_prompt(spec)
    check_rollout(spec)
    check_parts(spec)
    _check_target_modules(spec)


def _check_target_modules(spec: training_pb2.RunSpec) -> None:
    names = list(spec.lora.target_modules)
    require(spec, "lora.target_modules", len(set(names)) == len(names), "names one twice")
    for name in names:
        # The loss multiplies hidden states by the frozen head that teacher and student share.
        require(
            spec,
            "lora.target_modules",
            name not in ("lm_head", "embed_tokens"),
            f"must not contain {name}: the head is shared with the teacher",
        )


def _check_finite(message: Message, prefix: str = "") -> None:
    for field, content in message.ListFields():
        if isinstance(content, Message):
            _check_finite(content, f"{prefix}{field.name}.")
        elif isinstance(content, float) and not math.isfinite(content):
            raise SpecError(f"{prefix}{field.name}", content, "must be finite")
