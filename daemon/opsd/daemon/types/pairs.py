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
    answered: bool = True  # False: the text held no answer to judge


class PairStatus(StrEnum):
    VERIFIED = "verified"  # may be trained on
    UNVERIFIED = "unverified"  # kept with its verdict, never trained on
    QUARANTINED = "quarantined"  # kept apart, never trained on unless a person releases it
    PURGED = "purged"  # its content is erased; the row stays, so that it cannot come back unnoticed


class Origin(StrEnum):
    """How a pair came about; what the model made itself is kept apart and capped."""

    SUBMITTED = "submitted"  # by a client or an operator
    IMPORTED = "imported"  # from a file of a data set
    FEEDBACK = "feedback"  # a correction or an answer sent back for an attempt
    OWN_ATTEMPT = "own_attempt"  # the model's own trace on a problem whose answer is known
    SELF_CONSISTENCY = "self_consistency"  # the majority of the model's samples is the answer
    SELF_PLAY = "self_play"  # the model proposed the problem too


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
    origin: Origin = Origin.SUBMITTED
    quarantine_reason: str = ""  # why it is QUARANTINED


class AddPairKind(StrEnum):
    """What became of a pair that was handed to the store."""

    STORED = "stored"
    ALREADY_STORED = "already_stored"  # same id, same content
    DUPLICATE = "duplicate"  # same content under another id
    NEAR_DUPLICATE = "near_duplicate"  # nearly the same problem with the same solution
    ID_CONFLICT = "id_conflict"  # same id, other content
    PURGED = "purged"  # this content, or what had this id, was purged; it stays out
    OVER_QUOTA = "over_quota"  # its submitter has used up a quota


@dataclass(frozen=True, slots=True)
class AddPairResult:
    kind: AddPairKind
    pair: Pair | None  # the one in the store after the call; OVER_QUOTA: none
    detail: str = ""  # OVER_QUOTA: which limit, how much of it is used, when it resets


@dataclass(frozen=True, slots=True)
class PairCounts:
    verified: int
    unverified: int
    new_since_last_run: int  # verified, in no run's snapshot, stored after the newest snapshot
    quarantined: int = 0
    purged: int = 0


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
    canary_share: float | None = None  # the chance that its adapter was the canary; None: no draw
    caller: str = ""  # hashed, as the canary's comparison counts callers


@dataclass(frozen=True, slots=True)
class SuiteItem:
    """One held-out problem."""

    id: str
    prompt: str
    verifier: str
    reference: str
    stratum: str = ""
    cluster: str = ""  # items of one cluster (a passage, a template) are not independent; "": alone
    solution: str = ""  # for measuring whether an adapter can still read a key; "": the reference
