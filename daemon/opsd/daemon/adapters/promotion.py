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
from dataclasses import dataclass
from typing import Protocol

from opsd.daemon.adapters.routing import Router, RoutingSnapshot
from opsd.daemon.config.schema import PromotionConfig
from opsd.daemon.errors import (
    AdapterError,
    ConcurrentChangeError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store.api import AdapterStore, Change, GateStore
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import BASE, AdapterHandle
from opsd.daemon.types.gate import GateVerdict

log = logging.getLogger(__name__)

_PROMOTABLE = frozenset(
    {
        AdapterState.CANDIDATE,
        AdapterState.CANARY,
        AdapterState.PREVIOUS,
        AdapterState.RETIRED,
    }
)
_MAX_REASON_CHARS = 2000
_CANARY_POLL_S = 0.5


class PromotionStore(AdapterStore, GateStore, Protocol):
    """What promotion reads and writes."""


class EngineResidency(Protocol):
    """Which adapters the engine holds (``Residency`` is the real one)."""

    async def ensure(self, handle: AdapterHandle, role: str) -> None: ...

    async def retire(self, name: str) -> None: ...


VerifyAdapter = Callable[[Adapter], None]
"""Raises AdapterError unless the adapter's files still hold the bytes that its name promises."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A change of what serves, and how long it took from the request to the new routing."""

    change: Change
    adapter: Adapter | None
    swap_s: float


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
    ) -> None:
        self._store = store
        self._residency = residency
        self._router = router
        self._config = config
        self._verify = verify
        self._on_change = on_change
        self._lock = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()
        self._canary_task: asyncio.Task[None] | None = None

    async def restore(self) -> Incumbent:
        """Loads and routes what the row names: called once, before READY.

        Raises AdapterError when the incumbent's files are missing or changed: serving something
        else under its name would be worse than not serving.
        """
        row = await asyncio.to_thread(self._store.get_incumbent)
        await self._load(row.adapter, "incumbent")
        if row.canary:
            await self._load(row.canary, "canary")
        if row.previous and row.previous != BASE:
            try:
                await self._load(row.previous, "previous")
            except AdapterError as error:
                log.warning("previous adapter is not loaded name=%s error=%s", row.previous, error)
        await self._route(row)
        if row.canary:
            self._watch_canary(row)
        return row

    async def stop(self) -> None:
        """Stops watching; changes nothing of what serves."""
        tasks = [*self._background, *([self._canary_task] if self._canary_task else [])]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def approve(
        self, name: str, *, actor: str, reason: str, override_inconclusive: bool = False
    ) -> Outcome:
        """The incumbent changes to the adapter, through a canary when one is configured.

        Raises StateError when the adapter may not serve: rejected, never evaluated, failed by the
        gate, or not proven against what serves now. A person can override only that last doubt and
        an inconclusive gate, and answers for it in the audit log.
        """
        _require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            adapter = await asyncio.to_thread(self._store.get_adapter, name)
            await self._check_promotable(adapter, row, override_inconclusive)
            await self._load(adapter.name, "candidate")
            wants_canary = (
                self._config.canary_share > 0
                and self._config.canary_duration_s > 0
                and adapter.state is AdapterState.CANDIDATE
            )
            if wants_canary:
                change = await asyncio.to_thread(
                    self._store.start_canary,
                    adapter.name,
                    share=self._config.canary_share,
                    expected_epoch=row.epoch,
                    actor=actor,
                    reason=reason,
                )
                await self._follow(change, row)
                self._watch_canary(change.incumbent)
            else:
                await self._cancel_canary_watch()
                change = await self._promote(adapter.name, row, actor, reason)
        return await self._outcome(change, adapter.name, started)

    async def reject(self, name: str, *, actor: str, reason: str) -> Outcome:
        """A candidate will never serve."""
        _require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            change = await asyncio.to_thread(self._store.reject, name, actor=actor, reason=reason)
            assert change.adapter is not None
            self._retire_later(change.adapter.name)
            self._on_change()
        return await self._outcome(change, change.adapter.name, started)

    async def rollback(self, *, actor: str, reason: str) -> Outcome:
        """The incumbent changes back to the previous one; with a canary running, the canary is
        withdrawn instead. Raises StateError when there is nothing to go back to."""
        _require_reason(reason)
        started = time.monotonic()
        async with self._lock:
            row = await asyncio.to_thread(self._store.get_incumbent)
            if not row.canary and not row.previous:
                raise StateError(
                    f"nothing to roll back to: {row.adapter} has served since the beginning"
                )
            if row.canary:
                await self._cancel_canary_watch()
            elif row.previous != BASE:
                await self._load(row.previous, "previous")
            change = await asyncio.to_thread(
                self._store.rollback, expected_epoch=row.epoch, actor=actor, reason=reason
            )
            await self._follow(change, row)
        return await self._outcome(change, row.canary or row.adapter, started)

    async def _check_promotable(
        self, adapter: Adapter, row: Incumbent, override_inconclusive: bool
    ) -> None:
        if adapter.name == row.adapter:
            raise StateError(f"{adapter.name} is the incumbent already")
        if row.canary and adapter.name != row.canary:
            raise StateError(
                f"{row.canary} is in its canary phase: roll it back or wait for it to be promoted "
                f"before approving {adapter.name}"
            )
        if adapter.state not in _PROMOTABLE:
            raise StateError(
                f"{adapter.name} is {adapter.state.value}: a new run is needed, a rejected adapter "
                "never serves"
            )
        try:
            report = await asyncio.to_thread(self._store.get_gate, adapter.name)
        except NotFoundError:
            raise StateError(
                f"{adapter.name} has no gate report yet: wait until its run is awaiting_approval "
                "(opsd runs watch)"
            ) from None
        if report.verdict is GateVerdict.FAIL:
            raise StateError(f"{adapter.name} failed the gate: {report.explanation}")
        if override_inconclusive:
            return
        if report.verdict is GateVerdict.INCONCLUSIVE:
            raise StateError(
                f"the gate is inconclusive about {adapter.name}: {report.explanation} To take the "
                "responsibility, approve with --override-inconclusive"
            )
        if report.incumbent != row.adapter:
            raise StateError(
                f"{adapter.name} was compared with {report.incumbent}, but {row.adapter} serves "
                "now: nothing is proven against it. Trigger a new run, or approve with "
                "--override-inconclusive"
            )

    async def _load(self, name: str, role: str) -> None:
        if name == BASE:
            return
        adapter = await asyncio.to_thread(self._store.get_adapter, name)
        await asyncio.to_thread(self._verify, adapter)
        await self._residency.ensure(adapter.handle(), role)

    async def _promote(self, name: str, row: Incumbent, actor: str, reason: str) -> Change:
        change = await asyncio.to_thread(
            self._store.promote, name, expected_epoch=row.epoch, actor=actor, reason=reason
        )
        await self._follow(change, row)
        return change

    async def _follow(self, change: Change, before: Incumbent) -> None:
        """Routes what was committed, then lets go of what nothing needs any more."""
        after = change.incumbent
        await self._route(after)
        roles = {"incumbent": after.adapter, "canary": after.canary, "previous": after.previous}
        for role, name in roles.items():
            handle = await self._handle(name)
            if handle is not None:
                await self._residency.ensure(handle, role)
        for name in {before.adapter, before.previous, before.canary} - set(roles.values()):
            self._retire_later(name)
        self._on_change()

    async def _route(self, row: Incumbent) -> None:
        """One assignment changes the routing of every request that comes after it."""
        canary = await self._handle(row.canary)
        self._router.swap(
            RoutingSnapshot(
                incumbent=await self._handle(row.adapter),
                canary=canary,
                canary_share=row.canary_share if canary else 0.0,
                epoch=row.epoch,
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

    def _watch_canary(self, row: Incumbent) -> None:
        self._canary_task = asyncio.create_task(self._run_canary(row), name="canary")

    async def _cancel_canary_watch(self) -> None:
        task, self._canary_task = self._canary_task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run_canary(self, row: Incumbent) -> None:
        """Promotes the canary when its time is over, withdraws it at its first engine error."""
        deadline = row.changed_unix_s + self._config.canary_duration_s
        errors_at_start = self._router.engine_errors(row.canary)
        while True:
            failed = self._router.engine_errors(row.canary) - errors_at_start
            if failed or time.time() >= deadline:
                break
            await asyncio.sleep(min(_CANARY_POLL_S, max(0.0, deadline - time.time())))
        async with self._lock:
            now = await asyncio.to_thread(self._store.get_incumbent)
            if now.canary != row.canary:
                return
            try:
                if failed:
                    change = await asyncio.to_thread(
                        self._store.rollback,
                        expected_epoch=now.epoch,
                        actor="opsd",
                        reason=f"{failed} requests failed in the engine during the canary phase",
                    )
                    await self._follow(change, now)
                else:
                    await self._promote(
                        row.canary, now, row.actor, f"canary phase over: {row.reason}"
                    )
            except ConcurrentChangeError as error:
                log.warning("canary not concluded adapter=%s error=%s", row.canary, error)

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


def _require_reason(reason: str) -> None:
    if not reason.strip():
        raise InvalidInputError("reason: is empty; say why, the audit log keeps it (--reason TEXT)")
    if len(reason) > _MAX_REASON_CHARS:
        raise InvalidInputError(
            f"reason: has {len(reason)} characters, at most {_MAX_REASON_CHARS} are kept"
        )
