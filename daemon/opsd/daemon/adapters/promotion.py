"""How the incumbent changes: approval, canary, promotion, rejection and rollback.

Order matters everywhere here. The adapter is in the engine before the row names it; the row is
committed before the router follows; what left is unloaded only after nothing uses it. A crash
between any two of these leaves a state that ``restore`` serves correctly from the row alone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from opsd.daemon.adapters import metrics
from opsd.daemon.adapters.approvals import (
    OPSD,
    Approvals,
    Pending,
    require_person,
    require_reason,
)
from opsd.daemon.adapters.canary import CanaryWatch, OutcomeFeed, WatchStore, plan_json
from opsd.daemon.adapters.canary_rules import Decision, Move
from opsd.daemon.adapters.routing import Router, RoutingSnapshot
from opsd.daemon.adapters.sweep import PendingSweep
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import AdapterError, NotFoundError, NotReadyError, StateError
from opsd.daemon.store.api import AdapterStore, CanaryStore, Change, GateStore, VoteStore
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.canary import Canary, CanaryEnd
from opsd.daemon.types.engine import BASE, AdapterHandle
from opsd.daemon.types.runs import Run

log = logging.getLogger(__name__)


class PromotionStore(WatchStore, AdapterStore, CanaryStore, VoteStore, GateStore, Protocol):
    """What promotion reads and writes."""

    def get_run(self, run_id: str) -> Run: ...


class EngineResidency(Protocol):
    """Which adapters the engine holds (``Residency`` is the real one)."""

    async def ensure(self, handle: AdapterHandle, role: str) -> None: ...

    async def retire(self, name: str) -> None: ...


VerifyAdapter = Callable[[Adapter], None]
"""Raises AdapterError unless the adapter's files still hold the bytes that its name promises."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change of what serves, and how long it took from the request to the new routing.

    A vote that does not decide yet changes nothing: ``counted`` is below ``required`` then.
    """

    change: Change
    adapter: Adapter | None
    swap_s: float
    counted: int = 0
    required: int = 0


@dataclass(frozen=True, slots=True)
class Rescue:
    """Who rolls back at the start what is damaged, and why."""

    actor: str
    reason: str


class Promoter:
    """The only writer of the incumbent; one change at a time."""

    def __init__(
        self,
        store: PromotionStore,
        residency: EngineResidency,
        router: Router,
        config: PromotionConfig,
        verify: VerifyAdapter,
        on_change: Callable[[], None] = lambda: None,
        outcomes: OutcomeFeed | None = None,
    ) -> None:
        """``outcomes``: where verified outcomes of attempts come from, for canaries."""
        self._store = store
        self._residency = residency
        self._router = router
        self._config = config
        self._verify = verify
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self.approvals = Approvals(store, config)
        self.sweep = PendingSweep(
            self.approvals, config, expire=self._expire, approve=self._approve_by_policy
        )
        self.canary = CanaryWatch(store, config, self._conclude, outcomes)

    async def restore(self, rescue: Rescue | None = None) -> Incumbent:
        """Loads and routes what the row names: called once, before READY.

        Raises AdapterError when the incumbent's files are missing or changed, and nobody ordered a
        ``rescue``: serving something else under its name would be worse than not serving. A
        canary's are no reason not to serve the incumbent: it is withdrawn.
        """
        if rescue is not None:
            require_person(rescue.actor)
            require_reason(rescue.reason)
        # Under the lock: the row that is routed is the one that a decision left meanwhile.
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            try:
                await self._load(row.adapter, "incumbent")
            except AdapterError as error:
                if rescue is None:
                    raise AdapterError(
                        f"{error}; {row.adapter} is what serves: put its files back from a copy "
                        "(`opsd adapters export` makes one), or roll back: opsd serve --roll-back "
                        "REASON"
                    ) from error
                log.error("incumbent is damaged: rolling back error=%s", error)
                damaged = row.adapter
                if row.canary:  # it was tried against the damaged one
                    row = await self._roll_back_unrouted(row, damaged, rescue)
                row = await self._roll_back_unrouted(row, damaged, rescue)
                await self._load(row.adapter, "incumbent")
            if row.canary:
                row = await self._load_canary(row)
            if row.previous and row.previous != BASE:
                try:
                    await self._load(row.previous, "previous")
                except AdapterError as error:
                    log.warning(
                        "previous adapter is not loaded name=%s error=%s", row.previous, error
                    )
            await self._route(row)
        self.sweep.start()
        return row

    async def stop(self) -> None:
        """Stops watching; changes nothing of what serves."""
        await self.sweep.stop()
        tasks = [*self._background]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self.canary.stop()

    # What people decide

    async def approve(
        self, name: str, *, actor: str, reason: str, override_inconclusive: bool = False
    ) -> Outcome:
        """A vote for the adapter; the last one needed makes it the incumbent, through a canary
        when one is configured.

        Raises StateError when the adapter may not serve: rejected, never evaluated, failed by the
        gate, or not proven against what serves now; or when the person may not vote. A person can
        override only that last doubt and an inconclusive gate, and answers for it in the audit log.
        """
        require_person(actor)
        require_reason(reason)
        return await self._approve(name, actor, reason, override_inconclusive)

    async def reject(self, name: str, *, actor: str, reason: str) -> Outcome:
        """A candidate will never serve: one vote against it is enough."""
        require_person(actor)
        require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            adapter = await asyncio.to_thread(self._store.get_adapter, name)
            report = await self.approvals.report(adapter)
            change = await asyncio.to_thread(
                self._store.vote_to_reject,
                adapter.name,
                actor=actor,
                reason=reason,
                verdict=report.verdict.value if report else "",
            )
            metrics.VOTES.labels("reject").inc()
            self._retire_later(adapter.name)
            self._on_change()
        return await self._outcome(change, adapter.name, started)

    async def rollback(self, *, actor: str, reason: str, canary_only: bool = False) -> Outcome:
        """The incumbent changes back to the previous one; with a canary running, the canary is
        withdrawn instead. Raises StateError when there is nothing to go back to, or with
        ``canary_only`` no canary."""
        require_person(actor)
        require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            if canary_only and not row.canary:
                raise StateError(f"there is no canary: {row.adapter} serves alone")
            if not row.canary and not row.previous:
                raise StateError(
                    f"nothing to roll back to: {row.adapter} has served since the beginning"
                )
            if not row.canary and row.previous != BASE:
                await self._load(row.previous, "previous")
            change = await self._roll_back(row, actor, reason)
        return await self._outcome(change, row.canary or row.adapter, started)

    async def advance_canary(self, *, actor: str, reason: str) -> Outcome:
        """The canary's next step, by hand; the last one promotes. StateError without a canary."""
        require_person(actor)
        require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            if not row.canary:
                raise StateError(f"there is no canary: {row.adapter} serves alone")
            change = await self._step(row, actor, reason)
            metrics.CANARY_ADVANCES.labels("hand").inc()
        return await self._outcome(change, row.canary, started)

    async def pending(self) -> list[Pending]:
        """Candidates that wait for a decision, then what served once and has votes to serve again;
        newest first."""
        return [*await self.approvals.pending(), *await self.approvals.voted_again()]

    async def find_canary(self, name: str = "") -> Canary:
        """The adapter's canary, running or ended; of no name, the newest. NotFoundError."""
        if name:
            adapter = await asyncio.to_thread(self._store.get_adapter, name)
            return await asyncio.to_thread(self._store.get_canary, adapter.name)
        newest = await asyncio.to_thread(self._store.list_canaries, limit=1)
        if not newest:
            raise NotFoundError("there has been no canary yet: promotion.steps says how one goes")
        return newest[0]

    # What rules and clocks decide

    async def _conclude(self, canary: str, decision: Decision) -> None:
        """Called by the watch."""
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            if row.canary != canary or self.canary.canary is None:
                return
            if decision.move is Move.WITHDRAW:
                log.warning("canary withdrawn adapter=%s reason=%s", canary, decision.reason)
                await self._roll_back(row, OPSD, decision.reason)
            else:
                await self._step(row, OPSD, decision.reason)
                metrics.CANARY_ADVANCES.labels("rule").inc()

    async def _approve_by_policy(self, candidate: Pending, reason: str) -> None:
        await self._approve(candidate.adapter.name, OPSD, reason, False)

    async def _expire(self, candidate: Pending, reason: str) -> None:
        async with self._lock:
            await asyncio.to_thread(
                self._store.expire_candidate,
                candidate.adapter.name,
                actor=OPSD,
                reason=reason,
                verdict=candidate.report.verdict.value,
                expires_unix_s=candidate.expires_unix_s,
            )
            metrics.VOTES.labels("expire").inc()
            self._retire_later(candidate.adapter.name)
            self._on_change()

    # How it is done; the lock is held

    async def _approve(self, name: str, actor: str, reason: str, override: bool) -> Outcome:
        started = time.monotonic()
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            adapter = await asyncio.to_thread(self._store.get_adapter, name)
            policy = await self.approvals.policy(adapter, row, override=override)
            report = await self.approvals.report(adapter)
            assert report is not None, "policy() asked for a report"
            # A vote that might be the last one finds the adapter ready in the engine.
            await self._load(adapter.name, "canary" if row.canary else "candidate")
            wants_canary = self._config.wants_canary and not await self._has_served(adapter)
            plan = self._config.plan()
            voted = await asyncio.to_thread(
                self._store.vote_to_approve,
                adapter.name,
                actor=actor,
                reason=reason,
                override=override,
                verdict=report.verdict.value,
                policy=policy,
                expected_epoch=row.epoch,
                canary_plan=(plan.steps[0], plan_json(plan)) if wants_canary else None,
            )
            metrics.VOTES.labels("approve").inc()
            if voted.decided:
                await self._follow(voted.change, row)
        outcome = await self._outcome(voted.change, adapter.name, started)
        return replace(outcome, counted=voted.counted, required=voted.required)

    async def _has_served(self, adapter: Adapter) -> bool:
        """All traffic, once: a canary that was withdrawn has still to prove itself."""
        if adapter.state is not AdapterState.RETIRED:
            return adapter.state is not AdapterState.CANDIDATE
        try:
            canary = await asyncio.to_thread(self._store.get_canary, adapter.name)
        except NotFoundError:
            return True
        return canary.end is not CanaryEnd.WITHDRAWN

    async def _step(self, row: Incumbent, actor: str, reason: str) -> Change:
        if self.canary.canary is None:
            raise NotReadyError(
                f"{row.canary} is not watched yet, the daemon is starting: try again when "
                "`opsd status` says ready"
            )
        following = self.canary.canary.step + 1
        await self.canary.save()
        detail = self.canary.detail()
        if self.canary.plan.steps[following] >= 1.0:
            change = await asyncio.to_thread(
                self._store.promote,
                row.canary,
                expected_epoch=row.epoch,
                actor=actor,
                reason=reason,
                detail=detail,
            )
            metrics.CANARY_ENDS.labels("promoted").inc()
        else:
            change = await asyncio.to_thread(
                self._store.advance_canary,
                row.canary,
                step=following,
                share=self.canary.plan.steps[following],
                expected_epoch=row.epoch,
                actor=actor,
                reason=reason,
                detail=detail,
            )
        await self._follow(change, row)
        return change

    async def _roll_back(self, row: Incumbent, actor: str, reason: str) -> Change:
        detail = None
        if row.canary and self.canary.canary:
            await self.canary.save()
            detail = self.canary.detail()
        change = await asyncio.to_thread(
            self._store.rollback,
            expected_epoch=row.epoch,
            actor=actor,
            reason=reason,
            detail=detail,
        )
        if row.canary:
            metrics.CANARY_ENDS.labels("withdrawn").inc()
        await self._follow(change, row)
        return change

    async def _roll_back_unrouted(self, row: Incumbent, damaged: str, why: Rescue) -> Incumbent:
        """Before anything serves."""
        change = await asyncio.to_thread(
            self._store.rollback,
            expected_epoch=row.epoch,
            actor=why.actor,
            reason=why.reason,
            detail={"damaged": damaged},
        )
        if row.canary:
            metrics.CANARY_ENDS.labels("withdrawn").inc()
        return change.incumbent

    async def _load(self, name: str, role: str) -> None:
        if name == BASE:
            return
        adapter = await asyncio.to_thread(self._store.get_adapter, name)
        await asyncio.to_thread(self._verify, adapter)
        await self._residency.ensure(adapter.handle(), role)

    async def _load_canary(self, row: Incumbent) -> Incumbent:
        try:
            await self._load(row.canary, "canary")
        except AdapterError as error:
            log.error("canary withdrawn adapter=%s reason=%s", row.canary, error)
            why = Rescue(OPSD, f"not loaded at the daemon's start: {error}")
            return await self._roll_back_unrouted(row, row.canary, why)
        return row

    async def _follow(self, change: Change, before: Incumbent) -> None:
        """Routes what was committed, then lets go of what nothing needs any more."""
        after = change.incumbent
        await self._route(after)
        roles = {"incumbent": after.adapter, "canary": after.canary, "previous": after.previous}
        for role, name in roles.items():
            handle = await self._handle(name)
            if handle is not None:
                try:
                    await self._residency.ensure(handle, role)
                except NotReadyError as error:
                    # Decided while the daemon starts: restore() loads what the row names.
                    log.info("not loaded yet name=%s role=%s reason=%s", name, role, error)
        for name in {before.adapter, before.previous, before.canary} - set(roles.values()):
            self._retire_later(name)
        self._on_change()

    async def _route(self, row: Incumbent) -> None:
        """One assignment changes the routing of every request that comes after it."""
        await self.canary.follow(row)
        handle = await self._handle(row.canary)
        canary = self.canary.canary
        is_watched = handle is not None and canary is not None
        self._router.swap(
            RoutingSnapshot(
                incumbent=await self._handle(row.adapter),
                canary=handle,
                canary_share=row.canary_share if handle else 0.0,
                epoch=row.epoch,
                salt=canary.salt if canary else "",
                by_caller=not is_watched or self.canary.plan.sticky_by == "caller",
                mirror_share=self.canary.plan.shadow_share if is_watched else 0.0,
            )
        )

    async def _handle(self, name: str) -> AdapterHandle | None:
        if name in {"", BASE}:
            return None
        return (await asyncio.to_thread(self._store.get_adapter, name)).handle()

    def _retire_later(self, name: str) -> None:
        if name in {"", BASE}:
            return
        task = asyncio.create_task(self._residency.retire(name), name=f"retire-{name}")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _outcome(self, change: Change, name: str, started: float) -> Outcome:
        swap_s = time.monotonic() - started
        adapter = None if name == BASE else await asyncio.to_thread(self._store.get_adapter, name)
        log.info(
            "incumbent=%s previous=%s epoch=%d subject=%s swap_s=%.3f",
            change.incumbent.adapter,
            change.incumbent.previous or "-",
            change.incumbent.epoch,
            name,
            swap_s,
        )
        return Outcome(change=change, adapter=adapter, swap_s=swap_s)
