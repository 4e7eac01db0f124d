"""Which adapters the engine holds, in which role, and when it may let go of one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from opsd.daemon.adapters.routing import Router
from opsd.daemon.errors import AdapterError, EngineError, NotReadyError, StateError
from opsd.daemon.types.engine import AdapterHandle, Engine

log = logging.getLogger(__name__)

STUDENT = "student"
ROLES = ("incumbent", "canary", "candidate", "previous", STUDENT)
_RETRY_UNLOAD_S = 0.05


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter that the engine holds."""

    handle: AdapterHandle
    role: str  # one of ROLES
    in_flight: int  # requests


@dataclass(frozen=True, slots=True)
class _Hold:
    """Why an adapter is held; every ``ensure`` makes a new one, which retirement compares."""

    role: str
    serial: int


class Residency:
    """Loads before anybody routes, unloads after nobody does.

    The engine has ``max_loras`` slots; one stays free, so that the next candidate always finds room
    while the adapter it replaces still answers its last requests. A training run's student is held
    for sampling alone: no request can name it, and it makes room for any other role.
    """

    def __init__(
        self,
        engine: Engine,
        router: Router,
        on_change: Callable[[dict[str, str]], None] = lambda _: None,
    ) -> None:
        """``on_change`` is told adapter name → role after every change."""
        self._interrupt: Callable[[str], Awaitable[None]] | None = None
        self._on_change = on_change
        self._engine = engine
        self._router = router
        self._holds: dict[AdapterHandle, _Hold] = {}
        self._serial = 0
        self._lock = asyncio.Lock()
        router.set_resident(self.handles)

    def handles(self) -> Collection[AdapterHandle]:
        """Adapters that a request may name."""
        return [handle for handle, hold in self._holds.items() if hold.role != STUDENT]

    def set_interrupt(self, interrupt: Callable[[str], Awaitable[None]]) -> None:
        """What ends the sampling from a student, by name, and returns once it has ended."""
        self._interrupt = interrupt

    def residents(self) -> list[Resident]:
        """What the engine holds, by role."""
        found = [
            Resident(handle, hold.role, self._router.in_flight(handle.name))
            for handle, hold in self._holds.items()
        ]
        return sorted(
            found, key=lambda resident: (ROLES.index(resident.role), resident.handle.name)
        )

    async def ensure(self, handle: AdapterHandle, role: str) -> None:
        """The adapter is loaded and has the role when this returns.

        Raises StateError when no slot could be freed without taking the last spare one, and what
        ``Engine.load_adapter`` raises.
        """
        assert role in ROLES, f"role {role!r} is not one of {', '.join(ROLES)}"
        async with self._lock:
            if handle not in self._holds:
                await self._make_room(handle, role)
                await self._engine.load_adapter(handle)
            self._serial += 1
            self._holds[handle] = _Hold(role, self._serial)
            self._tell()

    async def retire(self, name: str) -> None:
        """Unloads the adapter once nothing uses it; a no-op when it is not loaded.

        An adapter that is given a role, or routed to, in the meantime stays.
        """
        handle = next((held for held in self._holds if held.name == name), None)
        if handle is None:
            return
        hold = self._holds[handle]
        while True:
            await self._router.wait_idle(name)
            async with self._lock:
                if self._holds.get(handle) != hold or self._is_routed(handle):
                    log.info("adapter stays name=%s reason=it is needed again", name)
                    return
                if not self._router.in_flight(name) and await self._let_go(handle):
                    return
            await asyncio.sleep(_RETRY_UNLOAD_S)

    async def reload_all(self) -> None:
        """After an engine restart: what was loaded is loaded again, what serves first.

        Raises AdapterError when an adapter that serves cannot be loaded; another one is let go.
        """
        async with self._lock:
            for resident in self.residents():
                handle = resident.handle
                try:
                    await self._engine.load_adapter(handle)
                except AdapterError as error:
                    if self._is_routed(handle):
                        raise
                    del self._holds[handle]
                    log.error("adapter not reloaded name=%s error=%s", handle.name, error)

    async def _let_go(self, handle: AdapterHandle) -> bool:
        """False: somebody who takes no route, such as the gate, still uses it."""
        hold = self._holds.pop(handle)  # from here on no request can name it
        try:
            await self._engine.unload_adapter(handle)
        except StateError:
            self._holds[handle] = hold
            return False
        except (EngineError, NotReadyError) as error:
            # An engine that died holds nothing any more, and its successor loads what is held here.
            log.warning("adapter gone with its engine name=%s error=%s", handle.name, error)
        self._tell()
        return True

    def _tell(self) -> None:
        self._on_change({handle.name: hold.role for handle, hold in self._holds.items()})

    def _is_routed(self, handle: AdapterHandle) -> bool:
        snapshot = self._router.snapshot
        return handle in (snapshot.incumbent, snapshot.canary)

    async def _make_room(self, handle: AdapterHandle, role: str) -> None:
        """Keeps one slot free, at the cost of a student, or of an idle candidate, which can be
        loaded again. A student itself takes nobody's place.
        """
        limit = self._engine.info.max_loras - 1
        if len(self._holds) < limit:
            return
        if role != STUDENT and await self._displace(handle):
            return
        for held in self._by_age("candidate") if role != STUDENT else ():
            idle = not self._is_routed(held) and not self._router.in_flight(held.name)
            if idle and await self._let_go(held):
                log.info("candidate unloaded to make room name=%s for=%s", held.name, handle.name)
                return
        raise StateError(self._no_room(handle, role, limit))

    async def _displace(self, handle: AdapterHandle) -> bool:
        """Lets go of the oldest student that can be stopped."""
        for held in self._by_age(STUDENT):
            if self._interrupt is not None:
                await self._interrupt(held.name)
            if await self._let_go(held):
                log.info("student unloaded to make room name=%s for=%s", held.name, handle.name)
                return True
        return False

    def _by_age(self, role: str) -> list[AdapterHandle]:
        """Those of the role, the one that got it first in front."""
        having = [(hold.serial, held) for held, hold in self._holds.items() if hold.role == role]
        return [held for _, held in sorted(having, key=lambda item: item[0])]

    def _no_room(self, handle: AdapterHandle, role: str, limit: int) -> str:
        held_names = ", ".join(f"{h.name} ({hold.role})" for h, hold in self._holds.items())
        return (
            f"adapter {handle.name} cannot be loaded as {role}: the engine holds {held_names}, "
            f"and the last of engine.max_loras={limit + 1} slots stays free; wait until one of "
            "them is retired, or raise engine.max_loras"
        )
