"""Suites as they are declared and kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opsd.daemon.types.gate import SuiteRole


class SuiteState(StrEnum):
    ACTIVE = "active"  # every gate measures it
    RETIRED = "retired"  # replaced by a later version, or removed


class SuiteSource(StrEnum):
    """Who declares a suite, and so may change it."""

    CONFIG = "config"  # [[gate.suites]]
    ADDED = "added"  # an operator, while the daemon runs


@dataclass(frozen=True, slots=True)
class SuiteSettings:
    """What is asked of a suite, beside its items."""

    name: str
    role: SuiteRole
    margin: float
    stratum_margin: float = 0.0
    sealed: bool = False
    budget: int = 0  # sealed: gates that may use it; else 0
    samples: int = 0  # 0: gate.samples


@dataclass(frozen=True, slots=True)
class SuiteVersion:
    """One version of a suite, immutable but for its state and the gates that used it.

    ``sha256`` is of the canonical content (``gate.suite_file.canonical_items``). ``fresh_share`` is
    the share of its items whose problem stood in no earlier version of whatever suite;
    ``queries_carried`` what was used of earlier versions that share too many of them.
    """

    settings: SuiteSettings
    version: str
    sha256: str
    num_items: int
    source: SuiteSource
    actor: str
    reason: str
    path: str
    description: str = ""
    state: SuiteState = SuiteState.ACTIVE
    created_unix_s: float = 0.0
    retired_unix_s: float = 0.0  # 0: active
    fresh_share: float = 1.0
    queries_carried: int = 0
    queries_used: int = 0  # with those carried over

    @property
    def name(self) -> str:
        return self.settings.name


@dataclass(frozen=True, slots=True)
class QueryUse:
    """Whether a gate may use a suite."""

    allowed: bool
    used: int  # with this one, if it is allowed
    budget: int  # 0: without limit


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """Stored pairs that overlap a suite's items."""

    num_exact: int = 0
    num_near: int = 0
    num_known: int = 0  # of both, those that had been in quarantine before
    pair_ids: tuple[str, ...] = ()  # some of them


@dataclass(frozen=True, slots=True)
class CachedAnswer:
    """Where an answer is kept: two gates that ask the same of the same adapter share it."""

    adapter: str  # SHA-256 of the adapter; of base, the model's fingerprint
    conditions: str  # SHA-256 of all that the answer depends on, beside item and sample
    item_id: str
    sample: int
