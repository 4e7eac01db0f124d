"""Every key of the configuration, its unit, default and bounds.

A field's description is what `opsd config init` writes beside it and what docs/reference shows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from opsd.daemon.config.collect import CollectConfig as CollectConfig
from opsd.daemon.config.gate import GateConfig
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.config.section import Fraction, Port, PositiveInt, PositiveSeconds, Section
from opsd.daemon.config.signing import SigningConfig
from opsd.daemon.config.training import TrainingConfig
from opsd.daemon.config.verify import VerifyConfig


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
        default=6,
        ge=4,
        le=32,
        description="Adapters in one batch: incumbent, candidate, previous, a spare and, for runs "
        "that sample here, two versions of the student.",
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
        default=10,
        ge=0,
        le=19,
        description="Niceness added to the trainer's: serving comes first. "
        "With Ray, its workers' own counts.",
    )
    launcher: Literal["torchrun", "ray"] = Field(
        default="torchrun",
        description="Where the trainer's processes run: on this machine, or on a Ray cluster that "
        "this machine belongs to.",
    )
    ray_address: str = Field(
        default="", description="Of the cluster's head, host:port; empty: the one joined here."
    )
    ray_cpus_per_process: PositiveInt = Field(
        default=1, description="CPUs that a process reserves, beside its GPU."
    )
    ray_resource: str = Field(
        default="",
        description="Custom resource of the machines that may be used, one for each process; "
        "empty: all machines.",
    )
    ray_timeout_s: PositiveSeconds = Field(
        default=120.0, description="How long the cluster may take to have the devices, in seconds."
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
        default=20000, description="So many pairs at most go into a shard."
    )
    recency: Fraction = Field(
        default=0.5,
        description="Share of them that is the newest pairs; the rest is drawn from all.",
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
        default=3,
        description="Launches of one run: a trainer that is killed, or loses one of its processes, "
        "is started again from its checkpoint.",
    )


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
    verify: VerifyConfig = VerifyConfig()
    pool: PoolConfig = PoolConfig()
    runs: RunsConfig = RunsConfig()
    training: TrainingConfig = TrainingConfig()
    gate: GateConfig = GateConfig()
    promotion: PromotionConfig = PromotionConfig()
    signing: SigningConfig = SigningConfig()
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
