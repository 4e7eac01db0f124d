"""The resolved specification of one run: everything the trainer reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from google.protobuf import json_format

from opsd.daemon.config.schema import PoolConfig, TrainingConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.runs.files import write_atomically
from opsd.daemon.runs.overrides import merge_overrides
from opsd.daemon.types.engine import BASE
from opsd.v1 import training_pb2

SPEC_VERSION: Final = 1
SPEC_NAME: Final = "run.json"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is fixed about the served model and its engine."""

    path: str
    dtype: str  # "float32", "bfloat16" or "float16"
    fingerprint: str  # SHA-256, see training.proto's ModelRef
    max_lora_rank: int  # the engine's


@dataclass(frozen=True, slots=True)
class Starting:
    """What serves when a run starts; ``path`` is empty for ``base``."""

    adapter: str = BASE
    path: str = ""

    def absolute(self) -> Starting:
        """Without a bearing on anybody's working directory."""
        return Starting(self.adapter, str(Path(self.path).absolute()) if self.path else "")


@dataclass(frozen=True, slots=True)
class SpecBuilder:
    """Builds RunSpecs from the configuration, the model's facts and a trigger's overrides."""

    training: TrainingConfig
    pool: PoolConfig
    model: ModelFacts
    stall_timeout_s: float

    def resolve(self, overrides_json: str) -> TrainingConfig:
        """The training section of this run; raises InvalidInputError naming field and fix."""
        training = merge_overrides(self.training, overrides_json)
        self._check(training)
        return training

    def build(
        self,
        *,
        run_id: str,
        run_dir: Path,
        shard: training_pb2.ShardRef,
        overrides_json: str,
        starting: Starting,
    ) -> training_pb2.RunSpec:
        """The whole RunSpec; with ``base`` as the incumbent, its teacher is the base one."""
        training = self.resolve(overrides_json)
        starting = starting.absolute()
        return training_pb2.RunSpec(
            spec_version=SPEC_VERSION,
            run_id=run_id,
            model=training_pb2.ModelRef(
                path=str(Path(self.model.path).absolute()),
                dtype=self.model.dtype,
                fingerprint=self.model.fingerprint,
            ),
            shard=shard,
            prompt=training_pb2.PromptSpec(**training.prompt.model_dump()),
            rollout=training_pb2.RolloutSpec(**training.rollout.model_dump()),
            objective=_objective(training, starting),
            lora=training_pb2.LoraSpec(**training.lora.model_dump()),
            optim=training_pb2.OptimSpec(**training.optim.model_dump()),
            seed=training.seed,
            checkpoint_every_steps=training.checkpoint_every_steps,
            heartbeat_interval_s=training.heartbeat_interval_s,
            output_dir=str(run_dir),
            initial_adapter_path=starting.path if training.continue_from_incumbent else "",
            device=resolve_device(self.pool.device),
            num_processes=self.pool.num_devices,
            threads_per_process=self.pool.threads_per_process,
        )

    def _check(self, training: TrainingConfig) -> None:
        if training.lora.rank > self.model.max_lora_rank:
            raise InvalidInputError(
                f"lora.rank is {training.lora.rank}, but the engine serves ranks up to "
                f"{self.model.max_lora_rank}: lower it, or raise engine.max_lora_rank"
            )
        if training.heartbeat_interval_s >= self.stall_timeout_s:
            raise InvalidInputError(
                f"heartbeat_interval_s is {training.heartbeat_interval_s:g}, but a trainer that is "
                f"silent for runs.stall_timeout_s = {self.stall_timeout_s:g} is killed: lower the "
                "former or raise the latter"
            )
        optim = training.optim
        if optim.warmup_steps > optim.num_steps:
            raise InvalidInputError(
                f"optim.warmup_steps is {optim.warmup_steps}, more than optim.num_steps = "
                f"{optim.num_steps}: lower it"
            )
        if not (optim.adam_beta1 and optim.adam_beta2):
            raise InvalidInputError("optim.adam_beta1 and optim.adam_beta2 must be above 0")
        if training.objective.divergence == "policy_gradient" and training.objective.top_k:
            raise InvalidInputError(
                "objective.top_k must be 0 for the policy gradient, which looks at the sampled "
                "token only"
            )
        for word in training.objective.epistemic_words:
            if word != word.strip() or not any(char.isalnum() for char in word):
                raise InvalidInputError(
                    f"objective.epistemic_words holds {word!r}: words or phrases are expected, "
                    "without space around them"
                )
        if "{solution}" in training.prompt.student_template:
            raise InvalidInputError(
                "prompt.student_template holds {solution}: take it out, the student never sees it"
            )
        _check_template("student_template", training.prompt.student_template, ("{problem}",))
        _check_template(
            "teacher_template", training.prompt.teacher_template, ("{problem}", "{solution}")
        )


def resolve_device(configured: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """``auto`` is ``cuda`` where the NVIDIA driver shows a device that is not hidden from us."""
    if configured != "auto":
        return configured
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "cuda" if not hidden and Path("/dev/nvidiactl").exists() else "cpu"


def spec_to_json(spec: training_pb2.RunSpec) -> str:
    """Canonical proto3 JSON with snake_case names; fields that are zero are written too."""
    return json.dumps(
        json_format.MessageToDict(
            spec, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        ),
        indent=2,
        ensure_ascii=False,
    )


def write_spec(spec: training_pb2.RunSpec, run_dir: Path) -> str:
    """Writes ``run.json`` atomically and returns its text."""
    text = spec_to_json(spec)
    write_atomically(run_dir / SPEC_NAME, text.encode() + b"\n")
    return text


def read_spec(spec_json: str) -> training_pb2.RunSpec:
    """The RunSpec of a row's ``spec_json``."""
    return json_format.Parse(spec_json, training_pb2.RunSpec())


def _objective(training: TrainingConfig, starting: Starting) -> training_pb2.ObjectiveSpec:
    objective = training.objective
    teacher = objective.teacher
    if teacher == "incumbent" and starting.adapter == BASE:
        teacher = "base"
    return training_pb2.ObjectiveSpec(
        divergence=training_pb2.Divergence.Value(f"DIVERGENCE_{objective.divergence.upper()}"),
        jsd_beta=objective.jsd_beta,
        clip_mode=training_pb2.ClipMode.Value(f"CLIP_MODE_{objective.clip_mode.upper()}"),
        clip_value=objective.clip_value,
        teacher=training_pb2.Teacher.Value(f"TEACHER_{teacher.upper()}"),
        teacher_adapter_path=starting.path if teacher == "incumbent" else "",
        ema_decay=objective.ema_decay,
        top_k=objective.top_k,
        epistemic_words=objective.epistemic_words,
        epistemic_weight=objective.epistemic_weight,
    )


def _check_template(name: str, template: str, placeholders: tuple[str, ...]) -> None:
    missing = [placeholder for placeholder in placeholders if placeholder not in template]
    if missing:
        raise InvalidInputError(
            f"prompt.{name} lacks {' and '.join(missing)}: put it where the text belongs"
        )
