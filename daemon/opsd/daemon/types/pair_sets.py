"""Sets of pairs: how they are named, limited, drawn from and changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from opsd.daemon.types.pairs import Origin, Pair, PairStatus

SELF_MADE = frozenset({Origin.SELF_CONSISTENCY, Origin.SELF_PLAY})
"""Origins whose answers no person and no data set vouches for."""


@dataclass(frozen=True, slots=True)
class PairFilter:
    """Pairs that match all of what is given; nothing given: all that are not purged."""

    ids: tuple[str, ...] = ()
    status: PairStatus | None = None
    source: str = ""
    submitter: str = ""
    origin: Origin | None = None

    @property
    def names_pairs(self) -> bool:
        """Whether it says more than a status."""
        return bool(self.ids or self.source or self.submitter or self.origin)

    def __str__(self) -> str:
        parts = [f"{len(self.ids)} ids"] if self.ids else []
        named = {"submitter": self.submitter, "source": self.source, "origin": self.origin}
        parts += [f"{name} {str(value)!r}" for name, value in named.items() if value]
        parts += [f"status {self.status.value}"] if self.status else []
        return ", ".join(parts) or "all pairs"


@dataclass(frozen=True, slots=True)
class Quota:
    """What one submitter may store; 0: unlimited. Days are those of UTC."""

    pairs_per_day: int = 0
    bytes_per_day: int = 0
    pairs_stored: int = 0
    exempt: frozenset[str] = frozenset()

    @property
    def is_on(self) -> bool:
        return bool(self.pairs_per_day or self.bytes_per_day or self.pairs_stored)


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """What a submitter has used."""

    submitter: str
    pairs_today: int
    bytes_today: int
    pairs_stored: int
    resets_unix_s: float  # when the day's counts begin anew


@dataclass(frozen=True, slots=True)
class NewPair:
    """A pair to be stored. Pairs that share one of the ``band_keys`` (signed 64-bit integers) of
    their prompts are candidates for being near-duplicates; without keys none is looked for."""

    pair: Pair
    band_keys: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class AddRules:
    """What is refused although it is well formed."""

    is_near_duplicate: Callable[[str, str], bool] | None = None  # of two prompts
    same: Literal["solution", "answer"] = "solution"  # what else near-duplicates must share
    quota: Quota = field(default_factory=Quota)


@dataclass(frozen=True, slots=True)
class DrawPolicy:
    """How the pairs of a run are drawn."""

    max_pairs: int
    recency: float = 0.5  # share of the batch that is the newest pairs; the rest is random
    max_submitter_share: float = 1.0  # of the batch, for any one submitter
    max_self_made_share: float = 1.0  # of the batch, for SELF_MADE origins together


@dataclass(frozen=True, slots=True)
class Draw:
    """The pairs of a run, oldest first."""

    pairs: tuple[Pair, ...]
    num_available: int  # verified pairs that the draw was from
    num_held_out: int  # looked at and left out because a suite holds their problem
    last_seq: int  # of the newest pair that the draw could have taken


@dataclass(frozen=True, slots=True)
class GroupCount:
    """How many pairs there are of one source, submitter and origin."""

    source: str
    submitter: str
    origin: Origin
    verified: int
    unverified: int
    quarantined: int
    purged: int
    size_bytes: int  # prompt, solution and reference, of all that are not purged


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run that some of the pairs in question went into."""

    run_id: str
    state: str
    num_pairs: int  # of those in question, in its snapshot
    shard_path: str  # "": it has none
    adapters: tuple[str, ...]
    through: str = ""  # the adapter that it inherits them from, where its snapshot has none


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one step of retention did."""

    num_removed: int
    last_seq: int  # where the next step goes on
    is_done: bool
