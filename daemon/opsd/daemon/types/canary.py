"""A canary: its plan, its state, and what is observed of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Metric(StrEnum):
    """What the canary and the incumbent are compared in; more is worse in each."""

    OUTCOME = "outcome"  # share of verified outcomes that are failures
    ENGINE_ERROR = "engine_error"  # share of requests that failed in the engine
    TRUNCATED = "truncated"  # share of replies that met max_tokens or the context's end
    # Probability that a canary's reply, divided by the plan's factor, took longer than another,
    # minus 1/2.
    LATENCY = "latency"
    LENGTH = "length"  # the same of the number of tokens


class CanaryEnd(StrEnum):
    """How a canary ended."""

    RUNNING = "running"
    PROMOTED = "promoted"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class CanaryPlan:
    """What was configured when the canary began; it does not change on the way.

    ``steps`` are shares of the traffic, growing; 1 is the promotion. A first step of 0 mirrors
    only. ``margins`` says for each metric how much worse, in its unit, is tolerated.
    """

    steps: tuple[float, ...]
    mode: str  # "auto" or "manual"
    sticky_by: str  # "caller" or "request"
    shadow_share: float
    step_min_s: float
    step_min_requests: int  # of the canary; where nothing is routed to it, mirrored ones
    step_min_outcomes: int  # verified, of the canary
    max_s: float  # 0: no limit
    alpha: float
    margins: dict[str, float]
    must_prove: tuple[str, ...]  # metrics whose loss must be shown to be below the margin
    factors: dict[str, float] = field(default_factory=dict)
    """By how much of a factor the canary's latency and length may be larger before they count as
    larger; 1 where nothing is said."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A canary's row."""

    id: int
    adapter: str
    salt: str  # hexadecimal; which callers fall in differs from canary to canary
    plan_json: str  # a CanaryPlan; "{}": what is configured now
    step: int  # index into the plan's steps
    started_unix_s: float
    step_started_unix_s: float
    statistics_json: str
    end: CanaryEnd
    ended_unix_s: float
    reason: str  # why it ended


@dataclass(frozen=True, slots=True)
class Assignment:
    """That a request's adapter was drawn, and how."""

    in_canary: bool
    share: float  # the probability with which the canary was drawn
    caller: str  # what the draw was sticky by, hashed with the canary's salt; "": the request
    canary: str  # the canary's name
    mirrored: bool = False  # it is compared with its mirror image instead


@dataclass(frozen=True, slots=True)
class Reply:
    """What a request ended with; cancelled and refused ones end with none."""

    engine_error: bool
    truncated: bool = False
    num_tokens: int = 0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What became known of an attempt later. ``seq`` grows with every outcome."""

    seq: int
    attempt_id: str
    adapter: str
    ok: bool
    verified: bool  # by opsd's own verifier; what a client claims is no evidence
