"""Who may decide about a candidate, what waits for a decision, and what waited too long."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Protocol

from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import InvalidInputError, NotFoundError, StateError
from opsd.daemon.store.api import AdapterStore, VoteStore
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.approval import Vote, VotePolicy, actor_key
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.daemon.types.runs import Run, RunState, TriggerKind

OPSD = "opsd"
"""Who acts where nobody does: rules and clocks."""

_NOBODY = frozenset({"", "unknown", OPSD, "gate", "configuration"})
_MAX_REASON_CHARS = 2000
_PROMOTABLE = frozenset(
    {
        AdapterState.CANDIDATE,
        AdapterState.PREVIOUS,
        AdapterState.RETIRED,
    }
)


class ApprovalStore(AdapterStore, VoteStore, Protocol):
    """What approvals read."""

    def get_gate(self, key: str) -> GateReport: ...

    def get_run(self, run_id: str) -> Run: ...


@dataclass(frozen=True, slots=True)
class Pending:
    """An adapter that waits for a decision."""

    adapter: Adapter
    report: GateReport
    proposer: str  # who triggered the run; "": no person
    since_unix_s: float
    expires_unix_s: float  # 0: never
    votes: tuple[Vote, ...]
    required: int
    doubt: str  # why only an override approves it; "": nothing stands against it


class Approvals:
    """Reads and checks; the promoter acts."""

    def __init__(self, store: ApprovalStore, config: PromotionConfig) -> None:
        self._store = store
        self._config = config

    async def policy(self, adapter: Adapter, row: Incumbent, *, override: bool) -> VotePolicy:
        """What a vote to approve is counted under.

        Raises StateError when the adapter may not serve: rejected, never evaluated, failed by the
        gate, or not proven against what serves now and ``override`` does not say that it may.
        """
        _require_promotable(adapter, row)
        report = await self.report(adapter)
        if report is None:
            raise StateError(
                f"{adapter.name} has no gate report yet: wait until its run is awaiting_approval "
                f"(`opsd runs watch {adapter.run_id}`)"
            )
        if report.verdict is GateVerdict.FAIL:
            raise StateError(f"{adapter.name} failed the gate: {report.explanation}")
        doubt = doubt_about(report, row)
        if doubt and not override:
            raise StateError(doubt)
        run = await self._run(adapter)
        return VotePolicy(
            required=self._config.approvals_required,
            proposer=proposer_of(run),
            needs_override=bool(doubt),
            expires_unix_s=self._expires(_since(report, run)),
        )

    async def pending(self) -> list[Pending]:
        """Candidates, newest first."""
        row = await asyncio.to_thread(self._store.get_incumbent)
        found = []
        for adapter in await asyncio.to_thread(self._store.list_adapters):
            if adapter.state is AdapterState.CANDIDATE:
                waits = await self._pending(adapter, row)
                if waits is not None:
                    found.append(waits)
        return found

    async def voted_again(self) -> list[Pending]:
        """Adapters that served once and have votes to serve again, though not enough; newest
        first. They never expire."""
        row = await asyncio.to_thread(self._store.get_incumbent)
        found = []
        for adapter in await asyncio.to_thread(self._store.list_adapters):
            if adapter.state in (AdapterState.PREVIOUS, AdapterState.RETIRED):
                waits = await self._pending(adapter, row)
                if waits is not None and waits.votes:
                    found.append(replace(waits, expires_unix_s=0.0))
        return found

    async def _pending(self, adapter: Adapter, row: Incumbent) -> Pending | None:
        report, run = await self.report(adapter), await self._run(adapter)
        if report is None:
            return None
        is_first = adapter.state is AdapterState.CANDIDATE
        if is_first and run is not None and run.state is not RunState.AWAITING_APPROVAL:
            return None
        since_unix_s = _since(report, run)
        votes = await asyncio.to_thread(self._store.open_votes, adapter.name)
        return Pending(
            adapter=adapter,
            report=report,
            proposer=proposer_of(run),
            since_unix_s=since_unix_s,
            expires_unix_s=self._expires(since_unix_s),
            votes=tuple(votes),
            required=self._config.approvals_required,
            doubt=doubt_about(report, row),
        )

    async def report(self, adapter: Adapter) -> GateReport | None:
        try:
            return await asyncio.to_thread(self._store.get_gate, adapter.name)
        except NotFoundError:
            return None

    async def _run(self, adapter: Adapter) -> Run | None:
        try:
            return await asyncio.to_thread(self._store.get_run, adapter.run_id)
        except NotFoundError:
            return None

    def _expires(self, since_unix_s: float) -> float:
        wait_s = self._config.approval_expires_s
        return since_unix_s + wait_s if wait_s else 0.0


def doubt_about(report: GateReport, row: Incumbent) -> str:
    """Why the gate's report is no proof that the candidate is better than what serves now."""
    if report.verdict is GateVerdict.INCONCLUSIVE:
        return (
            f"the gate is inconclusive about {report.candidate}: to take the responsibility, "
            f"approve with --override-inconclusive. Its reasons: {report.explanation}"
        )
    if report.incumbent != row.adapter:
        return (
            f"{report.candidate} was compared with {report.incumbent}, but {row.adapter} serves "
            "now: nothing is proven against it. Trigger a new run, or approve with "
            "--override-inconclusive"
        )
    return ""


def proposer_of(run: Run | None) -> str:
    """Who triggered the run, where a person did."""
    return run.actor if run is not None and run.trigger is TriggerKind.OPERATOR else ""


def require_person(actor: str) -> None:
    """Raises InvalidInputError unless the label names somebody who can answer for a decision."""
    if actor_key(actor) in _NOBODY:
        raise InvalidInputError(
            f"actor: is {actor!r}, but a decision needs a person's name: set --actor or "
            "$OPSD_ACTOR (in gRPC, the field actor or the metadata x-opsd-actor)"
        )


def require_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidInputError("reason: is empty; say why, the audit log keeps it (--reason TEXT)")
    if len(reason) > _MAX_REASON_CHARS:
        raise InvalidInputError(
            f"reason: has {len(reason)} characters, at most {_MAX_REASON_CHARS} are kept"
        )


def _require_promotable(adapter: Adapter, row: Incumbent) -> None:
    if adapter.name == row.adapter:
        raise StateError(f"{adapter.name} is the incumbent already")
    if adapter.name == row.canary:
        raise StateError(
            f"{adapter.name} is the canary already: `opsd adapters canary advance` takes its next "
            "step, `opsd adapters canary abort` withdraws it"
        )
    if row.canary:
        raise StateError(
            f"{row.canary} is in its canary phase: roll it back or wait for it to be promoted "
            f"before approving {adapter.name}"
        )
    if adapter.state not in _PROMOTABLE:
        raise StateError(
            f"{adapter.name} is {adapter.state.value}: a new run is needed, a rejected adapter "
            "never serves"
        )


def _since(report: GateReport, run: Run | None) -> float:
    """When the waiting began; a report may be older than the run's move."""
    moved = [
        line.time_unix_s
        for line in (run.history if run is not None else ())
        if line.state is RunState.AWAITING_APPROVAL
    ]
    return moved[-1] if moved else report.finished_unix_s
