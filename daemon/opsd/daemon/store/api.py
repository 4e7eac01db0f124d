"""What the daemon's parts ask of the store.

Every method is synchronous, safe to call from any thread and one transaction; coroutines call it
through ``asyncio.to_thread``. Errors: NotFoundError, ConflictError, StateError,
ConcurrentChangeError and StoreError of ``opsd.daemon.errors``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from opsd.daemon.types.adapters import Adapter, AdapterState, AuditEntry, Incumbent
from opsd.daemon.types.gate import GateReport
from opsd.daemon.types.pairs import AddPairResult, Attempt, Pair, PairCounts, PairStatus, Rating
from opsd.daemon.types.runs import CurvePoint, PoolLease, Run, RunState

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a listing, newest first; ``next_token`` is empty on the last one."""

    items: tuple[T, ...]
    next_token: str = ""
    total: int = 0


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change of what serves, with its audit entry's id."""

    incumbent: Incumbent
    adapter: Adapter | None
    audit_id: int


class PairStore(Protocol):
    def add_pair(self, pair: Pair) -> AddPairResult:
        """Durable when it returns."""
        ...

    def get_pair(self, pair_id: str) -> Pair: ...

    def list_pairs(
        self,
        *,
        limit: int,
        token: str = "",
        status: PairStatus | None = None,
        source: str = "",
    ) -> Page[Pair]: ...

    def count_pairs(self) -> PairCounts: ...

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]:
        """Verified pairs, oldest first; with a limit, the newest ``limit`` of them."""
        ...

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` that stand in some run's snapshot."""
        ...

    def add_attempts(self, attempts: Sequence[Attempt]) -> None: ...

    def get_attempt(self, attempt_id: str) -> Attempt: ...

    def set_feedback(self, attempt_id: str, rating: Rating | None, comment: str) -> None: ...


class RunStore(Protocol):
    def create_run(self, run: Run) -> Run:
        """Stores a QUEUED run with its audit entry; a request_id seen before returns that run."""
        ...

    def get_run(self, run_id: str) -> Run:
        """By id or a unique prefix of at least 4 characters; with its history and its curve."""
        ...

    def list_runs(self, *, limit: int, token: str = "") -> Page[Run]:
        """Without history and curve."""
        ...

    def open_runs(self) -> list[Run]:
        """Runs in a state before the end (QUEUED … CANARY), oldest first."""
        ...

    def update_run(self, run_id: str, **fields: object) -> Run:
        """Sets fields of the row other than id, state, history and curve."""
        ...

    def transition_run(
        self, run_id: str, *, expected: RunState, to: RunState, reason: str, **fields: object
    ) -> Run:
        """Compare-and-set of the state plus a history line; ConcurrentChangeError when it moved."""
        ...

    def request_cancel(self, run_id: str, *, actor: str, reason: str) -> Run:
        """Sets cancel_reason and writes the audit entry; StateError when the run is over."""
        ...

    def add_curve_points(self, run_id: str, points: Sequence[CurvePoint]) -> Run:
        """Adds to the run's curve, all or none; of a step and suite, the later one stands."""
        ...

    def record_snapshot(self, run_id: str, pair_ids: Sequence[str]) -> None:
        """Which pairs the run trains on; idempotent."""
        ...

    def record_solves(self, run_id: str, counts: Mapping[str, tuple[int, int]]) -> None:
        """(attempts, solved) of the run for each pair that it attempted; idempotent."""
        ...

    def solve_counts(self, pair_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(attempts, solved) over all runs, for those of the pairs that were attempted."""
        ...

    def acquire_pool(self, holder: str, *, ttl_s: float) -> PoolLease | None:
        """None when another holder's lease has not expired; renews the holder's own."""
        ...

    def release_pool(self, holder: str) -> None: ...

    def pool_lease(self) -> PoolLease | None: ...


class AdapterStore(Protocol):
    def add_adapter(self, adapter: Adapter) -> Adapter:
        """Stores it as CANDIDATE and allots its lora_id (the field's value is ignored); the same
        name and sha256 again returns the stored row, the same name with another sha256 is a
        ConflictError.
        """
        ...

    def get_adapter(self, name: str) -> Adapter:
        """By name or a unique prefix (of the name, or of the digest after ``opsd-``)."""
        ...

    def list_adapters(self) -> list[Adapter]: ...

    def get_incumbent(self) -> Incumbent: ...

    def start_canary(
        self, name: str, *, share: float, expected_epoch: int, actor: str, reason: str
    ) -> Change:
        """The adapter's state and its run's (AWAITING_APPROVAL → CANARY), the incumbent row's
        canary and the audit entry, in one transaction."""
        ...

    def promote(self, name: str, *, expected_epoch: int, actor: str, reason: str) -> Change:
        """The incumbent row, the states of the adapters involved, the run's state when it is
        AWAITING_APPROVAL or CANARY (→ CANARY → PROMOTED, history in order) and the audit entry, in
        one transaction. ``previous`` becomes the former incumbent. ConcurrentChangeError when the
        epoch moved."""
        ...

    def rollback(self, *, expected_epoch: int, actor: str, reason: str) -> Change:
        """Incumbent and previous change places; the leaving adapter's run goes PROMOTED →
        ROLLED_BACK. With a canary running, the canary is withdrawn instead (its run CANARY →
        ROLLED_BACK, the incumbent stays). StateError when there is nothing to roll back to."""
        ...

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> Change:
        """A CANDIDATE becomes REJECTED, its run (EVALUATING or AWAITING_APPROVAL) too; the gate's
        report that says why is stored in the same transaction."""
        ...

    def allot_lora_id(self) -> int:
        """For an adapter that gets no row: of the same sequence, so never used for another."""
        ...

    def set_adapter_state(self, name: str, state: AdapterState) -> None: ...


class GateStore(Protocol):
    def save_gate(self, report: GateReport) -> None: ...

    def get_gate(self, key: str) -> GateReport:
        """By run id or adapter name (unique prefixes will do); the newest one."""
        ...

    def save_gate_outcome(
        self, run_id: str, adapter: str, suite: str, item_id: str, solved: bool | None, tokens: int
    ) -> None:
        """One item's outcome, so that an interrupted evaluation goes on where it stopped."""
        ...

    def gate_outcomes(self, run_id: str) -> dict[tuple[str, str, str], tuple[bool | None, int]]:
        """(adapter, suite, item_id) → (solved, tokens)."""
        ...


class AuditStore(Protocol):
    def add_audit(
        self, *, actor: str, action: str, subject: str, reason: str, detail_json: str = "{}"
    ) -> int: ...

    def list_audit(self, *, limit: int, token: str = "") -> Page[AuditEntry]: ...


class Store(PairStore, RunStore, AdapterStore, GateStore, AuditStore, Protocol):
    """All of it."""

    def close(self) -> None: ...
