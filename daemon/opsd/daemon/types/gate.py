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
    """One stratum; with a margin of its own it is judged, else only shown.

    The p-values are one-sided and Holm-adjusted over the strata of the suite: ``p_held`` against
    "it lost the margin or more", ``p_harmed`` against "it lost the margin at most".
    """

    stratum: str
    n: int
    incumbent_accuracy: float
    candidate_accuracy: float
    margin: float = 0.0  # 0: not judged
    p_held: float = 1.0
    p_harmed: float = 1.0
    verdict: GateVerdict | None = None


@dataclass(frozen=True, slots=True)
class SuiteReport:
    """Paired outcome on one suite; accuracies and differences are fractions.

    With several samples an item, an accuracy is the mean over items of the share solved (avg@k).
    ``p_value`` is one-sided, against what the suite must show: a gain for a target, a loss smaller
    than the margin for a guard. ``alpha`` is the level it is held to. A sealed suite's report has
    its verdict alone: every measured number in it is 0.
    """

    name: str
    role: SuiteRole
    n: int
    incumbent_accuracy: float
    candidate_accuracy: float
    only_incumbent: int  # of discordant answers: only the incumbent solved it
    only_candidate: int
    difference: float  # candidate minus incumbent
    ci_low: float
    ci_high: float
    confidence: float
    p_value: float
    margin: float
    verdict: GateVerdict
    explanation: str
    incumbent_tokens_mean: float
    candidate_tokens_mean: float
    strata: tuple[StratumReport, ...]
    num_errors: int
    suite_sha256: str
    version: str = ""
    sealed: bool = False
    alpha: float = 0.0
    gate_number: int = 1  # of the gates that decided on these items, this one included
    method: str = ""  # "mcnemar" (exact, Tango's interval) or "cluster" (sign flips, t)
    num_clusters: int = 0
    num_samples: int = 1  # answers an item
    incumbent_pass_at_k: float = 0.0  # items solved by at least one of the samples
    candidate_pass_at_k: float = 0.0


class CheckKind(StrEnum):
    """What a check compares."""

    RATIO = "ratio"  # candidate / reference, judged as its logarithm
    DIFFERENCE = "difference"  # candidate minus reference
    LEVEL = "level"  # the candidate's own value


@dataclass(frozen=True, slots=True)
class CheckReport:
    """One property of the answers beside their correctness.

    ``against`` is who the candidate is compared with. ``estimate`` and its interval are in the
    unit of ``kind``; ``low`` and ``high`` are the limits that the interval must stay within, None
    where there is none. ``verdict`` is None where there was nothing to judge; the explanation says
    why.
    """

    name: str
    kind: CheckKind
    against: str
    n: int
    reference: float
    candidate: float
    estimate: float
    ci_low: float
    ci_high: float
    low: float | None
    high: float | None
    verdict: GateVerdict | None
    explanation: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """One adapter alone on one suite; items without an outcome are left out."""

    suite: str
    n: int
    accuracy: float  # [0, 1]
    tokens_mean: float  # of the completions


@dataclass(frozen=True, slots=True)
class SuiteUse:
    """A suite that a gate is about to decide on."""

    name: str
    sha256: str
    role: SuiteRole
    prompt_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SuiteUsed:
    """A line of the ledger. ``gate_number`` counts the gates on the most used of the suite's items,
    this one included; ``alpha`` is what all of them may spend together."""

    run_id: str
    suite: str
    suite_sha256: str
    role: SuiteRole
    gate_number: int
    alpha: float
    time_unix_s: float


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
    checks: tuple[CheckReport, ...] = ()
    gate_inputs_sha256: str = ""  # of the canonical inputs that the report was decided from
    rules_version: int = 0  # of the deciding code
