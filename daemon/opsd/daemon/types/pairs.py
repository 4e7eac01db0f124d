"""Pairs, verdicts and attempts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class VerdictKind(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    ERROR = "error"  # the verifier could not tell: time-out, crash, unreadable input


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says, and why."""

    kind: VerdictKind
    verifier: str
    evidence: str
    duration_s: float = 0.0


class PairStatus(StrEnum):
    VERIFIED = "verified"  # may be trained on
    UNVERIFIED = "unverified"  # kept with its verdict, never trained on


@dataclass(frozen=True, slots=True)
class PairInput:
    """A pair as a client sends it, already checked for form."""

    id: str  # UUID, canonical lower-case form
    prompt: str
    solution: str
    verifier: str
    reference: str
    source: str = ""
    stratum: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """A stored pair. ``content_sha256`` covers prompt, solution, verifier and reference."""

    input: PairInput
    status: PairStatus
    verdict: Verdict
    submitter: str
    created_unix_s: float
    content_sha256: str
    prompt_key: str  # SHA-256 of the normalised prompt: what decontamination compares


class AddPairKind(StrEnum):
    """What became of a pair that was handed to the store."""

    STORED = "stored"
    ALREADY_STORED = "already_stored"  # same id, same content
    DUPLICATE = "duplicate"  # same content under another id
    ID_CONFLICT = "id_conflict"  # same id, other content


@dataclass(frozen=True, slots=True)
class AddPairResult:
    kind: AddPairKind
    pair: Pair  # the one in the store after the call


@dataclass(frozen=True, slots=True)
class PairCounts:
    verified: int
    unverified: int
    new_since_last_run: int  # verified, in no run's snapshot, stored after the newest snapshot


class Rating(StrEnum):
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One completion by the served model, as it went out."""

    id: str
    request_id: str
    adapter: str
    prompt: str
    completion: str
    completion_tokens: int
    created_unix_s: float
    rating: Rating | None = None
    comment: str = ""


@dataclass(frozen=True, slots=True)
class SuiteItem:
    """One held-out problem."""

    id: str
    prompt: str
    verifier: str
    reference: str
    stratum: str = ""
