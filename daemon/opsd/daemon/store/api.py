"""What the daemon's parts ask of the store.

Every method is synchronous, safe to call from any thread and one transaction; coroutines call it
through ``asyncio.to_thread``. Errors: NotFoundError, ConflictError, StateError,
ConcurrentChangeError and StoreError of ``opsd.daemon.errors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from opsd.daemon.types.adapters import Adapter, AdapterState, AuditEntry, Incumbent
from opsd.daemon.types.approval import Vote, VotePolicy
from opsd.daemon.types.audit import Head
from opsd.daemon.types.canary import Canary
from opsd.daemon.types.gate import GateReport, SuiteUse, SuiteUsed
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.pair_sets import (
    AddRules,
    Draw,
    DrawPolicy,
    GroupCount,
    NewPair,
    PairFilter,
    QuotaUse,
    Sweep,
    TrainedRun,
)
from opsd.daemon.types.pairs import (
    AddPairResult,
    Attempt,
    Origin,
    Pair,
    PairCounts,
    PairStatus,
    Rating,
    Verdict,
)
from opsd.daemon.types.runs import CurvePoint, PoolLease, Run, RunState
from opsd.daemon.types.suites import CachedAnswer, QueryUse, SuiteVersion

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


@dataclass(frozen=True, slots=True)
class Voted:
    """A vote that was counted; it decided when ``counted`` reached ``required``."""

    change: Change
    counted: int
    required: int

    @property
    def decided(self) -> bool:
        return self.counted >= self.required


class PairStore(Protocol):
    def add_pair(
        self, pair: Pair, *, band_keys: tuple[int, ...] = (), rules: AddRules = ...
    ) -> AddPairResult:
        """Durable when it returns."""
        ...

    def add_pairs(self, batch: Sequence[NewPair], *, rules: AddRules = ...) -> list[AddPairResult]:
        """The same for many, in order and in one transaction: all are durable, or none."""
        ...

    def get_pair(self, pair_id: str) -> Pair: ...

    def list_pairs(
        self,
        *,
        limit: int,
        token: str = "",
        status: PairStatus | None = None,
        source: str = "",
        submitter: str = "",
        origin: Origin | None = None,
    ) -> Page[Pair]:
        """Without a status: all that are not purged."""
        ...

    def scan_pairs(self, *, after_seq: int, limit: int) -> list[tuple[int, Pair]]:
        """(seq, pair) of the next pairs that are not purged, oldest first."""
        ...

    def filtered_pairs(
        self, wanted: PairFilter, *, after_seq: int, limit: int
    ) -> list[tuple[int, Pair]]:
        """The same for those that match."""
        ...

    def count_pairs(self) -> PairCounts: ...

    def pair_groups(self, wanted: PairFilter | None = None) -> list[GroupCount]:
        """Counts by source, submitter and origin."""
        ...

    def quota_use(self, submitter: str) -> QuotaUse: ...

    def draw_pairs(
        self,
        run_id: str,
        policy: DrawPolicy,
        *,
        source: str = "",
        held_out: Callable[[Sequence[str]], set[str]],
    ) -> Draw:
        """The pairs of a run; ``held_out`` names those prompts that a suite holds."""
        ...

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]:
        """Verified pairs, oldest first; with a limit, the newest ``limit`` of them."""
        ...

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` that stand in some run's snapshot."""
        ...

    def add_attempts(self, attempts: Sequence[Attempt]) -> None: ...

    def get_attempt(self, attempt_id: str) -> Attempt: ...

    def set_feedback(self, attempt_id: str, rating: Rating | None, comment: str) -> None: ...


class PairChangeStore(Protocol):
    """One small batch a call; a ``Sweep`` says where the next call goes on."""

    def count_filtered(self, wanted: PairFilter) -> int: ...

    def change_pairs(
        self, wanted: PairFilter, to: PairStatus, *, after_seq: int = 0, reason: str = ""
    ) -> Sweep:
        """QUARANTINED, with a reason, or VERIFIED: released, to what the verdict says."""
        ...

    def purge_pairs(
        self,
        wanted: PairFilter,
        *,
        after_seq: int = 0,
        band_keys: Callable[[str], tuple[int, ...]] | None = None,
    ) -> Sweep:
        """Erases the texts; what names the pair stays."""
        ...

    def expire_pairs(
        self,
        status: PairStatus,
        *,
        before_unix_s: float,
        after_seq: int = 0,
        erase_trained: bool = False,
        band_keys: Callable[[str], tuple[int, ...]] | None = None,
    ) -> Sweep:
        """Deletes those stored before then; those of a run's snapshot are kept, or erased."""
        ...

    def expire_attempts(self, *, before_unix_s: float) -> Sweep: ...

    def set_verdict(self, pair_id: str, verdict: Verdict) -> Pair | None:
        """And the status that follows from it; None when the pair is gone."""
        ...

    def trained_runs(self, wanted: PairFilter) -> list[TrainedRun]:
        """The runs that pairs of the filter went into, with their adapters."""
        ...

    def pairs_without_bands(self, limit: int) -> list[tuple[int, Pair]]: ...

    def set_bands(self, keys_by_id: Sequence[tuple[str, tuple[int, ...]]]) -> None: ...

    def audit_change(
        self, wanted: PairFilter, *, actor: str, action: str, reason: str, **detail: object
    ) -> int: ...


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

    def record_snapshot(self, run_id: str, pair_ids: Sequence[str], *, last_seq: int = 0) -> None:
        """Which pairs the run trains on, and the newest that it could have; idempotent."""
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
        self,
        name: str,
        *,
        share: float,
        expected_epoch: int,
        actor: str,
        reason: str,
        plan_json: str = "{}",
    ) -> Change:
        """The adapter's state and its run's (AWAITING_APPROVAL → CANARY), the incumbent row's
        canary, the canary's own row and the audit entry, in one transaction."""
        ...

    def promote(
        self,
        name: str,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        """The incumbent row, the states of the adapters involved, the run's state when it is
        AWAITING_APPROVAL or CANARY (→ CANARY → PROMOTED, history in order) and the audit entry, in
        one transaction. ``previous`` becomes the former incumbent. ConcurrentChangeError when the
        epoch moved."""
        ...

    def rollback(
        self,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
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


class CanaryStore(Protocol):
    def advance_canary(
        self,
        name: str,
        *,
        step: int,
        share: float,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        """The incumbent row's share, the canary's step and the audit entry, in one transaction."""
        ...

    def get_canary(self, adapter: str) -> Canary:
        """The adapter's newest, running or ended; NotFoundError."""
        ...

    def list_canaries(self, *, limit: int) -> list[Canary]:
        """Newest first."""
        ...

    def canary_callers(self, canary_id: int) -> dict[str, set[str]]:
        """Stream → the hashed callers that it has counted."""
        ...

    def save_canary(
        self, canary_id: int, statistics_json: str, callers: Mapping[str, Iterable[str]]
    ) -> None:
        """The statistics, and the callers counted since the last call, in one transaction."""
        ...


class VoteStore(Protocol):
    """Each vote is one transaction with what it decides, under the lock that a promotion takes.

    StateError: the decision has been made, the candidate has expired, the person has voted or
    proposed it.
    """

    def vote_to_approve(
        self,
        name: str,
        *,
        actor: str,
        reason: str,
        override: bool,
        verdict: str,
        policy: VotePolicy,
        expected_epoch: int,
        canary_plan: tuple[float, str] | None,
    ) -> Voted:
        """The last vote needed starts the canary (first share, plan), or promotes."""
        ...

    def vote_to_reject(self, name: str, *, actor: str, reason: str, verdict: str) -> Change:
        """One is enough."""
        ...

    def expire_candidate(
        self, name: str, *, actor: str, reason: str, verdict: str, expires_unix_s: float
    ) -> Change: ...

    def list_votes(self, adapter: str) -> list[Vote]:
        """All that were ever cast on it, oldest first."""
        ...

    def open_votes(self, adapter: str) -> list[Vote]:
        """Those of the ballot that is not decided yet, oldest first."""
        ...


class GateStore(Protocol):
    def save_gate(self, report: GateReport) -> None: ...

    def get_gate(self, key: str) -> GateReport:
        """By run id or adapter name (unique prefixes will do); the newest one."""
        ...

    def get_gate_text(self, key: str) -> str:
        """The same report as the JSON that is stored."""
        ...


class AnswerStore(Protocol):
    """Answers of earlier gates, and of one that was interrupted."""

    def save_answer(self, key: CachedAnswer, record: AnswerRecord, *, run_id: str) -> None:
        """Durable when it returns; the later of two stands."""
        ...

    def recall_answers(
        self, adapter: str, conditions: str, *, run_id: str
    ) -> dict[tuple[str, int], AnswerRecord]:
        """(item_id, sample) → record, and notes that they were used now.

        One without an outcome counts only for the run that asked for it: whatever was wrong then
        need not be wrong now.
        """
        ...

    def answer_outcomes(self, conditions: str) -> list[dict[str, bool]]:
        """item_id → solved of the first sample, one entry an adapter, the last used one first."""
        ...

    def trim_answers(self, *, max_rows: int, max_age_s: float) -> int:
        """Forgets what was not used for ``max_age_s`` and, of the rest, those unused for longest
        beyond ``max_rows``; how many went."""
        ...


class SuiteStore(Protocol):
    """Suites, their versions, and the gates that used them."""

    def put_suite(
        self, suite: SuiteVersion, prompt_keys: Sequence[str], *, fresh_share: float
    ) -> SuiteVersion:
        """Makes it the active version of its name and retires the one before, with an audit entry.

        The store fills in time, ``fresh_share`` and queries: with a smaller share of fresh items
        than ``fresh_share``, what was used of versions with the same items is carried over. The
        same version again with the same content takes over the settings, and is a no-op when they
        are equal. ConflictError for other content under the same version, or a name that another
        source declares.
        """
        ...

    def retire_suite(self, name: str, *, actor: str, reason: str) -> SuiteVersion:
        """With an audit entry; NotFoundError when no version is active."""
        ...

    def get_suite(self, name: str, version: str = "") -> SuiteVersion:
        """By default the active version, or the newest when none is."""
        ...

    def list_suites(self, *, retired: bool = False) -> list[SuiteVersion]:
        """By name, newest version first; with ``retired``, those that are not active too."""
        ...

    def use_suite(self, name: str, version: str, run_id: str) -> QueryUse:
        """Counts the run's gate as one use, durably, once however often it is called; not when the
        budget is spent."""
        ...


class LedgerStore(Protocol):
    def claim_suite_uses(
        self, run_id: str, suites: Sequence[SuiteUse], *, alpha: float
    ) -> dict[str, int]:
        """Counts a use of every item, once for a run whatever happens to it, and gives for each
        suite how often the most used of its items had been used by other runs."""
        ...

    def num_suite_uses(self, prompt_keys: Sequence[str]) -> int:
        """Gates that used the most used of these items."""
        ...

    def list_suite_uses(self) -> list[SuiteUsed]:
        """Oldest first."""
        ...

    def save_gate_inputs(self, run_id: str, data: bytes) -> str:
        """Keeps the canonical inputs of a decision under their SHA-256, which it returns."""
        ...

    def get_gate_inputs(self, sha256: str) -> bytes: ...


class AuditStore(Protocol):
    def add_audit(
        self, *, actor: str, action: str, subject: str, reason: str, detail_json: str = "{}"
    ) -> int: ...

    def list_audit(self, *, limit: int, token: str = "") -> Page[AuditEntry]: ...

    def audit_entries(self, *, after_id: int = 0) -> Iterator[list[AuditEntry]]:
        """All entries after one, oldest first, in batches."""
        ...

    def audit_entry(self, entry_id: int) -> AuditEntry | None: ...

    def audit_head(self) -> Head: ...

    def promoting_entry(self, adapter: str) -> AuditEntry | None:
        """The newest entry that let the adapter serve; None when it never did."""
        ...


class Store(
    PairStore,
    PairChangeStore,
    RunStore,
    AdapterStore,
    CanaryStore,
    VoteStore,
    GateStore,
    LedgerStore,
    AnswerStore,
    SuiteStore,
    AuditStore,
    Protocol,
):
    """All of it."""

    def close(self) -> None: ...
