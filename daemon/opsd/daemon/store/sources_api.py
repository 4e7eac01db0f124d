"""What the sources of pairs ask of the store, beside ``PairStore``; see ``store.api``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opsd.daemon.store.api import Page
from opsd.daemon.types.pairs import Attempt, Origin, Pair, PairStatus
from opsd.daemon.types.problems import (
    AddProblemResult,
    Answerable,
    AttemptOutcome,
    AttemptOutcomeKind,
    Problem,
    ProblemState,
    Provenance,
    Round,
    StoredPair,
)


class ProblemStore(Protocol):
    def add_problem(self, problem: Problem) -> AddProblemResult:
        """Durable when it returns."""
        ...

    def get_problem(self, problem_id: str) -> Problem: ...

    def list_problems(
        self,
        *,
        limit: int,
        token: str = "",
        state: ProblemState | None = None,
        source: str = "",
    ) -> Page[Problem]: ...

    def problems_after(
        self, seq: int, *, limit: int, state: ProblemState | None = None, source: str = ""
    ) -> list[Problem]:
        """Those stored after ``seq``, oldest first."""
        ...

    def due_problems(
        self, answerable: Answerable, *, now_unix_s: float, limit: int
    ) -> list[Problem]:
        """Open ones whose next try is due: higher priority first, then older first."""
        ...

    def count_open_problems(self) -> dict[Answerable, int]: ...

    def record_round(self, done: Round) -> Problem:
        """Adds a round of samples to its problem's counts and sets its state."""
        ...

    def known_prompts(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` (types.text.prompt_key) that a pair or a problem has."""
        ...


class OutcomeStore(Protocol):
    def add_attempt_outcome(
        self,
        attempt_id: str,
        outcome: AttemptOutcomeKind,
        *,
        reporter: str,
        verified: bool,
        comment: str = "",
    ) -> tuple[AttemptOutcome, bool]:
        """The outcome that stands, and whether it is new; the first one stands."""
        ...

    def attempt_outcomes_since(
        self, after_seq: int, *, limit: int = 1000, adapter: str = "", attempt_id: str = ""
    ) -> list[AttemptOutcome]:
        """Outcomes after ``after_seq``, oldest first."""
        ...


class ProvenanceStore(Protocol):
    def add_provenance(self, provenance: Provenance) -> None:
        """Written again for the same pair, the first one stands."""
        ...

    def count_provenance(self, origin: Origin, *, since_unix_s: float) -> int:
        """Pairs of this origin made since then."""
        ...

    def pairs_after(
        self,
        seq: int,
        *,
        limit: int,
        status: PairStatus | None = None,
        source: str = "",
        since_unix_s: float = 0.0,
    ) -> list[StoredPair]:
        """Pairs stored after ``seq``, oldest first."""
        ...

    def pair_to_vary(self, place: float) -> Pair | None:
        """A verified pair whose problem a person posed, from ``place`` in [0, 1) on."""
        ...


class SourceStore(ProblemStore, OutcomeStore, ProvenanceStore, Protocol):
    """All of it."""

    def get_attempt(self, attempt_id: str) -> Attempt: ...
