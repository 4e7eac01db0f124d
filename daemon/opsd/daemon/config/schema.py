"""Every key of the configuration, its unit, default and bounds.

A field's description is what `opsd config init` writes beside it and what docs/reference shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Port = Annotated[int, Field(ge=0, le=65535)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveSeconds = Annotated[float, Field(gt=0.0)]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    path: str = Field(default="", description="Directory of the model in Hugging Face format.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="bfloat16", description="Number format of the weights, in serving and in training."
    )
    max_model_len: int | None = Field(
        default=None,
        ge=16,
        description="Longest prompt plus completion, in tokens; unset: the model's own.",
    )


class EngineConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="What the engine runs on."
    )
    max_num_seqs: PositiveInt = Field(default=64, description="Sequences in one engine step.")
    kv_cache_mib: int = Field(
        default=0, ge=0, description="KV cache, in MiB; 0: on a GPU vLLM's choice, on a CPU 512."
    )
    gpu_memory_fraction: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="Share of the GPU's memory that the engine may take.",
    )
    tensor_parallel: PositiveInt = Field(
        default=1, description="GPUs that one copy of the model spans."
    )
    max_loras: int = Field(
        default=4,
        ge=4,
        le=32,
        description="Adapters in one batch: incumbent, candidate, previous and a spare.",
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = Field(
        default=64,
        description="Largest LoRA rank that can be served; training.lora.rank must not exceed it.",
    )
    enforce_eager: bool = Field(
        default=False,
        description="Skip compilation and CUDA graphs: starts faster, runs slower on a GPU.",
    )
    threads: int = Field(default=1, ge=0, description="CPU threads of the engine; 0: all cores.")
    start_timeout_s: PositiveSeconds = Field(default=600.0, description="Until READY, in seconds.")


class ServerConfig(Section):
    host: str = Field(
        default="127.0.0.1", description="Address that the gRPC and metrics ports bind to."
    )
    port: Port = Field(default=50051, description="gRPC; 0: any free one (it is logged).")
    metrics_port: Port = Field(default=9464, description="Prometheus, over HTTP; 0: any free one.")
    max_message_mib: int = Field(
        default=8, ge=1, le=1024, description="Largest gRPC message, in MiB."
    )
    max_concurrent_requests: PositiveInt = Field(
        default=4096, description="Completions in flight; one more is answered RESOURCE_EXHAUSTED."
    )
    max_pending_rpcs: PositiveInt = Field(
        default=20000, description="Calls that gRPC may hold before they are taken up."
    )
    drain_timeout_s: PositiveSeconds = Field(
        default=30.0, description="How long a stopping daemon lets completions finish, in seconds."
    )
    default_max_tokens: PositiveInt = Field(
        default=512, description="New tokens when a request names no max_tokens."
    )
    record_attempts: bool = Field(
        default=True,
        description="Keep completions in the store, so that feedback can be given on them.",
    )


class StoreConfig(Section):
    url: str = Field(
        default="",
        description="SQLAlchemy URL, e.g. postgresql+psycopg://user@host/opsd; "
        "empty: SQLite in state_dir.",
    )


class CollectConfig(Section):
    verifier_processes: PositiveInt = Field(default=1, description="Processes that verify pairs.")
    verifier_timeout_s: PositiveSeconds = Field(
        default=10.0,
        description="A verification that takes longer is killed; its verdict is error.",
    )
    max_prompt_kib: PositiveInt = Field(
        default=64, description="Longest prompt of a pair, in KiB of UTF-8."
    )
    max_solution_kib: PositiveInt = Field(
        default=256, description="Longest solution of a pair, in KiB of UTF-8."
    )


class PoolConfig(Section):
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="What the trainer runs on."
    )
    num_devices: PositiveInt = Field(
        default=8, description="Reserved training devices: GPUs, or processes on a CPU."
    )
    visible_devices: str = Field(
        default="", description="CUDA_VISIBLE_DEVICES of the trainer; empty: inherited."
    )
    threads_per_process: int = Field(
        default=0, ge=0, description="CPU threads of one training process; 0: torch's default."
    )
    lease_ttl_s: PositiveSeconds = Field(
        default=60.0, description="A holder that does not renew its lease for so long loses it."
    )
    nice: int = Field(
        default=10, ge=0, le=19, description="Niceness added to the trainer's: serving comes first."
    )


class TriggerConfig(Section):
    cron: str = Field(default="", description="Crontab expression, five fields; empty: off.")
    interval_s: float = Field(default=0.0, ge=0.0, description="Every so many seconds; 0: off.")
    new_pairs: int = Field(
        default=0,
        ge=0,
        description="As soon as so many verified pairs came since the last run; 0: off.",
    )
    check_every_s: PositiveSeconds = Field(
        default=30.0, description="How often new_pairs is looked at."
    )
    timezone: str = Field(default="UTC", description="Of the crontab expression.")


class RunsConfig(Section):
    triggers: TriggerConfig = TriggerConfig()
    min_pairs: PositiveInt = Field(
        default=32, description="A run on fewer verified pairs is refused."
    )
    max_pairs: PositiveInt = Field(
        default=20000, description="The newest so many pairs go into a shard."
    )
    start_timeout_s: PositiveSeconds = Field(
        default=600.0, description="Until the trainer's first event, in seconds."
    )
    stall_timeout_s: PositiveSeconds = Field(
        default=300.0, description="A trainer that writes no event for so long is killed."
    )
    max_wall_s: PositiveSeconds = Field(
        default=86400.0, description="A run that trains longer is killed."
    )
    poll_interval_s: PositiveSeconds = Field(
        default=0.5, description="How often a run is reconciled."
    )
    kill_grace_s: PositiveSeconds = Field(
        default=10.0, description="Between SIGTERM and SIGKILL of a trainer."
    )
    max_launches: PositiveInt = Field(
        default=2,
        description="Launches of one run: a trainer lost with the daemon is started again "
        "from its checkpoint.",
    )


class PromptTraining(Section):
    system: str = Field(
        default="", description="System message of student and teacher; empty: none."
    )
    student_template: str = Field(default="{problem}", description="What the student is asked.")
    teacher_template: str = Field(
        default="{problem}\n\nReference solution: {solution}\nNow solve it your own way.",
        description="What the teacher is asked.",
    )
    student_thinking: bool = Field(
        default=False, description="The chat template's enable_thinking."
    )
    teacher_thinking: bool = Field(default=False, description="The same for the teacher.")


class RolloutTraining(Section):
    max_new_tokens: int = Field(
        default=1024, ge=1, le=32768, description="Tokens of one rollout at most."
    )
    rollouts_per_problem: PositiveInt = Field(
        default=1, description="Rollouts of one problem in one step."
    )
    temperature: float = Field(
        default=1.1, gt=0.0, le=10.0, description="Of sampling and of the loss."
    )
    top_p: float = Field(default=0.95, gt=0.0, le=1.0, description="1: off.")
    top_k: int = Field(default=20, ge=0, description="0: off.")


class ObjectiveTraining(Section):
    divergence: Literal["forward_kl", "reverse_kl", "jsd", "policy_gradient"] = Field(
        default="forward_kl", description="Between teacher and student, at every token."
    )
    jsd_beta: float = Field(
        default=0.5, gt=0.0, lt=1.0, description="Weight of the teacher in the mixture."
    )
    clip_mode: Literal["none", "clamp", "scale"] = Field(
        default="clamp",
        description="How an entry's share is bounded; at a tiny vocabulary: scale or none.",
    )
    clip_value: float = Field(
        default=0.05, gt=0.0, description="Bound of one entry's share, in nats."
    )
    teacher: Literal["base", "incumbent", "ema"] = Field(
        default="base", description="Who reads the solution."
    )
    ema_decay: float = Field(
        default=0.999, ge=0.0, lt=1.0, description="Per step; read for ema only."
    )
    top_k: int = Field(
        default=0,
        ge=0,
        description="Compare on the teacher's k greatest entries and the rest together; 0: on all.",
    )
    epistemic_words: tuple[str, ...] = Field(
        default=(
            "wait",
            "hmm",
            "maybe",
            "perhaps",
            "actually",
            "alternatively",
            "probably",
            "might",
            "not sure",
            "let me check",
        ),
        description="Words and phrases of doubt; their tokens are counted apart.",
    )
    epistemic_weight: float = Field(
        default=1.0, ge=0.0, le=1.0, description="Of those tokens in the loss; 0 shields them."
    )


class LoraTraining(Section):
    rank: int = Field(default=64, ge=1, le=256, description="Rank of the update.")
    alpha: float = Field(default=128.0, gt=0.0, description="Scale: alpha / rank.")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Probability.")
    target_modules: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Modules that get an update.",
    )


class OptimTraining(Section):
    num_steps: PositiveInt = Field(default=100, description="Optimiser steps.")
    problems_per_step: PositiveInt = Field(
        default=32, description="Problems in a step, over all processes."
    )
    micro_batch_size: PositiveInt = Field(default=4, description="Sequences in one forward pass.")
    learning_rate: float = Field(default=5e-6, gt=0.0, description="Peak.")
    warmup_steps: int = Field(default=5, ge=0, description="Linear, from 0.")
    final_lr_fraction: Fraction = Field(
        default=0.1, description="Linear decay to this share of the peak."
    )
    adam_beta1: float = Field(default=0.9, ge=0.0, lt=1.0, description="AdamW.")
    adam_beta2: float = Field(default=0.999, ge=0.0, lt=1.0, description="AdamW.")
    adam_eps: float = Field(default=1e-8, gt=0.0, description="AdamW.")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW, decoupled.")
    max_grad_norm: float = Field(default=0.1, ge=0.0, description="0: off.")


class TrainingConfig(Section):
    """What a run is made with, unless its trigger overrides it."""

    prompt: PromptTraining = PromptTraining()
    rollout: RolloutTraining = RolloutTraining()
    objective: ObjectiveTraining = ObjectiveTraining()
    lora: LoraTraining = LoraTraining()
    optim: OptimTraining = OptimTraining()
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="Of everything random in a run.")
    checkpoint_every_steps: int = Field(default=25, ge=0, description="0: none.")
    heartbeat_interval_s: PositiveSeconds = Field(
        default=5.0, description="Between a trainer's events."
    )
    continue_from_incumbent: bool = Field(
        default=False, description="Train the incumbent's weights on, instead of a fresh adapter."
    )


class SuiteConfig(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$", description="In reports and metrics.")
    path: str = Field(
        description="JSON lines: id, prompt, verifier, reference and, if wanted, stratum."
    )
    role: Literal["target", "guard"] = Field(
        description="target must improve, guard must not regress."
    )
    margin: float = Field(
        default=0.02,
        ge=0.0,
        le=1.0,
        description="guard: the loss tolerated; target: the gain asked for (fractions).",
    )


class GateConfig(Section):
    suites: tuple[SuiteConfig, ...] = Field(
        default=(), description="Held-out problems: [[gate.suites]]."
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1.0, description="Of the intervals; 1 - it is alpha."
    )
    max_tokens: PositiveInt = Field(default=1024, description="New tokens of one answer.")
    temperature: float = Field(default=0.0, ge=0.0, le=10.0, description="0 is greedy.")
    enable_thinking: bool = Field(default=False, description="The chat template's enable_thinking.")
    concurrency: PositiveInt = Field(default=16, description="Items in the engine at once.")
    timeout_s: PositiveSeconds = Field(
        default=14400.0, description="An evaluation that takes longer fails."
    )
    max_error_fraction: Fraction = Field(
        default=0.02, description="More items without an outcome than this: inconclusive."
    )


class PromotionConfig(Section):
    canary_share: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of traffic that an approved adapter gets first; 0: none.",
    )
    canary_duration_s: float = Field(default=0.0, ge=0.0, description="How long, in seconds.")


class LogConfig(Section):
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least severity."
    )
    format: Literal["text", "json"] = Field(
        default="text", description="One line an event, on stderr."
    )


class OpsdConfig(Section):
    """The whole configuration."""

    state_dir: Path = Field(
        default=Path("opsd-state"), description="Where the database, runs and adapters live."
    )
    model: ModelConfig = ModelConfig()
    engine: EngineConfig = EngineConfig()
    server: ServerConfig = ServerConfig()
    store: StoreConfig = StoreConfig()
    collect: CollectConfig = CollectConfig()
    pool: PoolConfig = PoolConfig()
    runs: RunsConfig = RunsConfig()
    training: TrainingConfig = TrainingConfig()
    gate: GateConfig = GateConfig()
    promotion: PromotionConfig = PromotionConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _rank_fits_engine(self) -> OpsdConfig:
        if self.training.lora.rank > self.engine.max_lora_rank:
            raise ValueError(
                f"training.lora.rank is {self.training.lora.rank} but engine.max_lora_rank is "
                f"{self.engine.max_lora_rank}: raise the latter or lower the former"
            )
        names = [suite.name for suite in self.gate.suites]
        if len(set(names)) != len(names):
            raise ValueError(f"gate.suites: names must differ, got {', '.join(names)}")
        return self
