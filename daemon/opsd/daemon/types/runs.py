"""Runs and their states."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    TRAINING = "training"
    EVALUATING = "evaluating"
    AWAITING_APPROVAL = "awaiting_approval"
    CANARY = "canary"
    PROMOTED = "promoted"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    ROLLED_BACK = "rolled_back"


class TriggerKind(StrEnum):
    OPERATOR = "operator"
    CRON = "cron"
    INTERVAL = "interval"
    NEW_PAIRS = "new_pairs"


@dataclass(frozen=True, slots=True)
class Transition:
    state: RunState
    time_unix_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A run's adapter as it was after some step, on one suite."""

    step: int
    generated_tokens: int  # sampled for training up to then
    train_s: float  # wall-clock seconds from the trainer's start up to then
    suite: str
    n: int  # items that were judged
    accuracy: float  # [0, 1]
    tokens_mean: float  # of the completions


@dataclass(frozen=True, slots=True)
class Run:
    """A run's row. JSON texts are canonical proto3 JSON of the messages in training.proto."""

    id: str  # UUID
    state: RunState
    trigger: TriggerKind
    actor: str
    reason: str  # why it is in this state
    created_unix_s: float
    updated_unix_s: float
    overrides_json: str = "{}"  # RunSpec fields that the operator set
    source: str = ""  # train on pairs of this source only
    request_id: str = ""  # the same id twice triggers one run
    spec_json: str = ""  # RunSpec, from PREPARING on
    run_dir: str = ""
    num_pairs: int = 0
    step: int = 0
    num_steps: int = 0
    metrics_json: str = ""  # StepMetrics of the last step
    generated_tokens: int = 0
    eval_done: int = 0
    eval_total: int = 0
    candidate: str = ""
    incumbent_at_start: str = ""
    launches: int = 0  # how often a trainer was started for it
    cancel_reason: str = ""  # set: a person asked for the run to be cancelled
    cancel_actor: str = ""
    error: str = ""
    log_tail: str = ""
    same_data_as: str = ""  # the run whose shard it trains on
    measure_only: bool = False  # rejected once it is evaluated, whatever the verdict
    teacher_check_json: str = ""  # TeacherCheckReport
    history: tuple[Transition, ...] = ()
    curve: tuple[CurvePoint, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolLease:
    """Who holds the training devices."""

    holder: str  # run id
    acquired_unix_s: float
    expires_unix_s: float
