"""The resolved specification of one run: everything the trainer reads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from google.protobuf import json_format

from opsd.daemon.config import training_rules
from opsd.daemon.config.schema import PoolConfig
from opsd.daemon.config.training import (
    ObjectiveTraining,
    PromptTraining,
    RolloutTraining,
    TrainingConfig,
)
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.runs.files import write_atomically
from opsd.daemon.runs.overrides import enum_prefix, merge_overrides
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
    support_address: str = ""  # see training.proto's SupportRef

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
            prompt=_prompt(training.prompt),
            rollout=_rollout(training.rollout),
            objective=_objective(training.objective, starting),
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
            teacher_check=training_pb2.TeacherCheckSpec(**training.teacher_check.model_dump()),
            curriculum=training_pb2.CurriculumSpec(**training.curriculum.model_dump()),
            token_audit=training_pb2.TokenAuditSpec(**training.token_audit.model_dump()),
            parallel=training_pb2.ParallelSpec(
                sharding=_enum(training_pb2.Sharding, training.parallel.sharding),
                gradient_checkpointing=training.parallel.gradient_checkpointing,
            ),
            support=training_pb2.SupportRef(address=self.support_address),
            keep_checkpoints=training.keep_checkpoints,
            export_every_steps=training.export_every_steps,
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
        for key, message, fix in (
            *training_rules.findings(training),
            *training_rules.pool_findings(training, self.pool.num_devices),
        ):
            raise InvalidInputError(f"{key} {message}: {fix}")


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


def _prompt(prompt: PromptTraining) -> training_pb2.PromptSpec:
    fields = prompt.model_dump()
    fields["contexts"] = [_enum(training_pb2.Context, name) for name in prompt.contexts]
    return training_pb2.PromptSpec(**fields)


def _rollout(rollout: RolloutTraining) -> training_pb2.RolloutSpec:
    fields = rollout.model_dump()
    fields["sampler"] = _enum(training_pb2.Sampler, rollout.sampler)
    return training_pb2.RolloutSpec(**fields)


def _objective(objective: ObjectiveTraining, starting: Starting) -> training_pb2.ObjectiveSpec:
    fields = objective.model_dump()
    teacher = objective.teacher
    if teacher == "incumbent" and starting.adapter == BASE:
        teacher = "base"
    fields |= {
        "method": _enum(training_pb2.Method, objective.method),
        "divergence": _enum(training_pb2.Divergence, objective.divergence),
        "clip_mode": _enum(training_pb2.ClipMode, objective.clip_mode),
        "teacher": _enum(training_pb2.Teacher, teacher),
        "teacher_adapter_path": starting.path if teacher == "incumbent" else "",
    }
    return training_pb2.ObjectiveSpec(**fields)


def _enum(kind: Any, name: str) -> Any:
    """The value that the configuration calls ``name``: its own name has the type's before it."""
    prefix = enum_prefix(kind.DESCRIPTOR)
    return kind.Value(prefix + name.upper())
