"""What the gate needs of its siblings, injected by ``app``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from opsd.daemon.store.api import AnswerStore
from opsd.daemon.types.evaluation import GateContext
from opsd.daemon.types.gate import GateReport, SuiteUse
from opsd.daemon.types.measured import SuiteMeasured
from opsd.daemon.types.pairs import SuiteItem, Verdict
from opsd.daemon.types.suites import OverlapReport, QueryUse

Decide = Callable[[GateContext, tuple[SuiteMeasured, ...]], GateReport]
"""The decision on what was measured; blocks."""

NearDuplicates = Callable[[Sequence[str]], Sequence[tuple[int, int]]]
"""Pairs of positions of texts that say nearly the same."""


class AnswerVerifier(Protocol):
    async def verify(
        self, verifier: str, reference: str, text: str, *, private: bool = False
    ) -> Verdict:
        """Judges ``text`` against ``reference``; for text it cannot judge the verdict is error.

        No metric tells the kind of a ``private`` verdict.
        """
        ...


class Routes(Protocol):
    """Who counts the completions that use an adapter; the router."""

    def route(self, request_id: str, explicit_adapter: str = "") -> AbstractContextManager[object]:
        """A lease: the adapter stays loaded until its exit; NotFoundError when it is not loaded."""
        ...

    def total_in_flight(self) -> int:
        """Leases held now, over all adapters."""
        ...


class EvaluationStore(AnswerStore, Protocol):
    """The part of the store that an evaluation uses."""

    def use_suite(self, name: str, version: str, run_id: str) -> QueryUse: ...

    def claim_suite_uses(
        self, run_id: str, suites: Sequence[SuiteUse], *, alpha: float
    ) -> dict[str, int]: ...


class TrainingOverlap(Protocol):
    """The stored pairs, as a new suite sees them."""

    def find_overlaps(self, suite: str, items: Sequence[SuiteItem]) -> OverlapReport:
        """Every stored pair whose problem is, or nearly is, one of the items. Blocks."""
        ...

    def quarantine_overlaps(
        self, suite: str, items: Sequence[SuiteItem], actor: str
    ) -> OverlapReport:
        """Puts what ``find_overlaps`` finds where it is never trained on. Blocks."""
        ...
