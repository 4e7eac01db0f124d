"""Problems for the model to attempt, and what became of attempts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opsd.daemon.types.pairs import Origin, Pair


class ProblemState(StrEnum):
    OPEN = "open"
    SOLVED = "solved"  # a pair came of it
    GIVEN_UP = "given_up"  # tried as often as is allowed
    HELD_OUT = "held_out"  # belongs to a suite by now; never attempted
    REFUSED = "refused"  # its pair was refused


@dataclass(frozen=True, slots=True)
class ProblemInput:
    """A problem as a client sends it, already checked for form."""

    id: str  # UUID, canonical lower-case form
    prompt: str
    verifier: str
    reference: str = ""  # "": nobody knows the answer
    source: str = ""
    stratum: str = ""
    priority: int = 0  # higher is attempted first


@dataclass(frozen=True, slots=True)
class Problem:
    """A stored problem. ``content_sha256`` covers prompt, verifier and reference."""

    input: ProblemInput
    submitter: str
    created_unix_s: float
    content_sha256: str
    prompt_key: str  # types.text.prompt_key
    origin: Origin = Origin.SUBMITTED
    parent_id: str = ""  # SELF_PLAY: the pair that it is a variant of
    state: ProblemState = ProblemState.OPEN
    attempts: int = 0  # samples drawn
    solves: int = 0  # of them verified, or in the majority
    tries: int = 0  # rounds of samples
    next_try_unix_s: float = 0.0
    pair_id: str = ""  # SOLVED: the pair
    note: str = ""  # how the last round ended
    updated_unix_s: float = 0.0
    seq: int = 0  # of the row; grows, never reused


class AddProblemKind(StrEnum):
    """What became of a problem that was handed to the store."""

    STORED = "stored"
    ALREADY_STORED = "already_stored"  # same id, same content
    DUPLICATE = "duplicate"  # same content under another id
    ID_CONFLICT = "id_conflict"  # same id, other content


@dataclass(frozen=True, slots=True)
class AddProblemResult:
    kind: AddProblemKind
    problem: Problem  # the one in the store after the call


class Answerable(StrEnum):
    """Which problems a source works on."""

    KNOWN = "known"  # the reference is there
    UNKNOWN = "unknown"  # it is not, and a person posed the problem
    SELF_POSED = "self_posed"  # it is not, and the model posed the problem


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of samples on a problem came to."""

    problem_id: str
    attempts: int
    solves: int
    state: ProblemState
    note: str
    pair_id: str = ""
    next_try_unix_s: float = 0.0


class AttemptOutcomeKind(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class AttemptOutcome:
    """What became of an attempt. An attempt has at most one outcome that was reported and one that
    was ``verified`` (by the daemon's own verifier, against a reference)."""

    attempt_id: str
    adapter: str
    outcome: AttemptOutcomeKind
    reporter: str
    verified: bool
    created_unix_s: float
    comment: str = ""
    seq: int = 0  # grows with every outcome, never reused


@dataclass(frozen=True, slots=True)
class Provenance:
    """How the model itself made a pair; written before the pair is."""

    pair_id: str
    origin: Origin
    problem_id: str
    adapter: str
    detail_json: str
    created_unix_s: float


@dataclass(frozen=True, slots=True)
class StoredPair:
    """A pair with its place in the table and, where the model made it, how."""

    seq: int
    pair: Pair
    provenance_json: str = ""
