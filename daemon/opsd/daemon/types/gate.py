"""The gate's report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GateVerdict(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class SuiteRole(StrEnum):
    TARGET = "target"  # must improve
    GUARD = "guard"  # must not regress by more than the margin


@dataclass(frozen=True, slots=True)
class StratumReport:
    stratum: str
    n: int
    incumbent_accuracy: float
    candidate_accuracy: float


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Paired outcome on one suite; accuracies and differences are fractions."""

    name: str
    role: SuiteRole
    n: int
    incumbent_accuracy: float
    candidate_accuracy: float
    only_incumbent: int  # discordant: only the incumbent solved it
    only_candidate: int
    difference: float  # candidate minus incumbent
    ci_low: float
    ci_high: float
    confidence: float
    p_value: float  # exact McNemar, two-sided
    margin: float
    verdict: GateVerdict
    explanation: str
    incumbent_tokens_mean: float
    candidate_tokens_mean: float
    strata: tuple[StratumReport, ...]
    num_errors: int
    suite_sha256: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """One adapter alone on one suite; items without an outcome are left out."""

    suite: str
    n: int
    accuracy: float  # [0, 1]
    tokens_mean: float  # of the completions


@dataclass(frozen=True, slots=True)
class GateReport:
    run_id: str
    candidate: str
    incumbent: str
    verdict: GateVerdict
    explanation: str
    suites: tuple[SuiteReport, ...]
    started_unix_s: float
    finished_unix_s: float
