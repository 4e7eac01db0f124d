"""Who said what about a candidate."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import StrEnum


class VoteDecision(StrEnum):
    APPROVE = "approve"
    REJECT = "reject"
    EXPIRE = "expire"  # nobody decided in time; the daemon's own


@dataclass(frozen=True, slots=True)
class Vote:
    """A person's decision about an adapter; it is never changed.

    Votes of one ``ballot`` count together; a deciding one ends it. A retired adapter that is to
    serve again gets another ballot.
    """

    adapter: str
    ballot: int  # from 0
    actor: str
    decision: VoteDecision
    override: bool  # although nothing is proven
    reason: str
    verdict: str  # the gate's, as it was then
    time_unix_s: float
    deciding: bool


@dataclass(frozen=True, slots=True)
class VotePolicy:
    """What one approval is counted under."""

    required: int
    proposer: str = ""  # who must not approve; "": nobody
    needs_override: bool = False  # then only votes that override count
    expires_unix_s: float = 0.0  # of a candidate; 0: never


def actor_key(actor: str) -> str:
    """The same for spellings of one name: of two approvals, each must be another person's."""
    return unicodedata.normalize("NFKC", actor).casefold().strip()
