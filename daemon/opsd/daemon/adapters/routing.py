"""Which adapter answers a request, and how many requests each adapter has in flight."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from opsd.daemon.errors import InvalidInputError, NotFoundError, OpsdError
from opsd.daemon.types.canary import Assignment
from opsd.daemon.types.engine import BASE, AdapterHandle

_PLACE_DIGITS = 12
_SHARE_STEPS = 1 << 48


@dataclass(frozen=True, slots=True)
class RoutingSnapshot:
    """What serves, as of one epoch. ``canary_share`` of the callers, in [0, 1], get the canary;
    ``mirror_share`` of the requests are answered by it unseen as well.
    """

    incumbent: AdapterHandle | None = None  # None: base
    canary: AdapterHandle | None = None  # None: there is no canary
    canary_share: float = 0.0
    epoch: int = 0
    salt: str = ""  # of the canary: not always the same callers fall in
    by_caller: bool = True  # False: each request is drawn for itself
    mirror_share: float = 0.0

    def __post_init__(self) -> None:
        assert 0.0 <= self.canary_share <= 1.0, f"canary_share {self.canary_share} not in [0, 1]"
        assert self.canary is not None or self.canary_share == 0.0, "a share without a canary"


@dataclass(slots=True)
class _Use:
    in_flight: int = 0
    ok: int = 0
    engine_errors: int = 0


class Route:
    """A lease on one adapter: from entry to exit the adapter counts as in use.

    An exit by EngineError counts as an engine error of the adapter, one without an exception as ok;
    cancellations and the caller's own mistakes count as neither.
    """

    __slots__ = ("_router", "adapter", "assignment", "epoch", "name")

    def __init__(
        self,
        router: Router,
        adapter: AdapterHandle | None,
        epoch: int,
        assignment: Assignment | None = None,
    ) -> None:
        """``assignment``: how the adapter was drawn; None: there was nothing to draw."""
        self._router = router
        self.assignment = assignment
        self.adapter = adapter
        self.name = BASE if adapter is None else adapter.name
        self.epoch = epoch
        router._enter(self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._router._leave(self.name, error)


class Router:
    """Holds one immutable snapshot; every request reads it once and keeps what it got.

    For one event loop: a route is taken and counted without an await in between, so what
    ``wait_idle`` saw idle after a swap stays idle.
    """

    def __init__(self, snapshot: RoutingSnapshot | None = None) -> None:
        self._snapshot = snapshot or RoutingSnapshot()
        self._use: dict[str, _Use] = {}
        self._idle_events: dict[str, asyncio.Event] = {}
        self._resident: Callable[[], Collection[AdapterHandle]] = lambda: ()

    @property
    def snapshot(self) -> RoutingSnapshot:
        return self._snapshot

    def swap(self, snapshot: RoutingSnapshot) -> None:
        """Every route taken from now on follows the new snapshot."""
        self._snapshot = snapshot

    def set_resident(self, resident: Callable[[], Collection[AdapterHandle]]) -> None:
        """Who knows the adapters that a request may name; ``Residency`` sets itself."""
        self._resident = resident

    def route(self, request_id: str, explicit_adapter: str = "", caller: str = "") -> Route:
        """Enter the lease at once: ``with router.route(...) as route``.

        An explicit name is ``base``, an adapter's full name, or a unique prefix of a loaded one's.
        A ``caller`` keeps its adapter while a canary's share stands, and stays in as it grows.
        Raises NotFoundError (nothing of that name is loaded) or InvalidInputError (ambiguous).
        """
        snapshot = self._snapshot
        if explicit_adapter:
            return Route(self, self._named(explicit_adapter, snapshot), snapshot.epoch)
        if snapshot.canary is None:
            return Route(self, snapshot.incumbent, snapshot.epoch)
        drawn = _draw(snapshot, snapshot.canary.name, request_id, caller)
        adapter = snapshot.canary if drawn.in_canary else snapshot.incumbent
        return Route(self, adapter, snapshot.epoch, drawn)

    def in_flight(self, name: str) -> int:
        """Requests that use the adapter now."""
        use = self._use.get(name)
        return 0 if use is None else use.in_flight

    def total_in_flight(self) -> int:
        return sum(use.in_flight for use in self._use.values())

    def ok(self, name: str) -> int:
        """Requests that the adapter completed since the daemon started."""
        use = self._use.get(name)
        return 0 if use is None else use.ok

    def engine_errors(self, name: str) -> int:
        """Requests that failed in the engine with this adapter since the daemon started."""
        use = self._use.get(name)
        return 0 if use is None else use.engine_errors

    async def wait_idle(self, name: str) -> None:
        """Returns once no request uses the adapter."""
        while self.in_flight(name):
            await self._idle_events.setdefault(name, asyncio.Event()).wait()

    def _named(self, name: str, snapshot: RoutingSnapshot) -> AdapterHandle | None:
        if name == BASE:
            return None
        loaded = {handle.name: handle for handle in self._resident()}
        for handle in (snapshot.incumbent, snapshot.canary):
            if handle is not None:
                loaded[handle.name] = handle
        if name in loaded:
            return loaded[name]
        matches = sorted(other for other in loaded if other.startswith(name))
        if len(matches) == 1:
            return loaded[matches[0]]
        names = ", ".join(sorted([BASE, *loaded]))
        if matches:
            raise InvalidInputError(
                f"adapter: {name!r} is ambiguous, it begins {', '.join(matches)}; write it out "
                "further"
            )
        raise NotFoundError(f"adapter: {name[:80]!r} is not loaded; loaded are {names}")

    def _enter(self, name: str) -> None:
        self._use.setdefault(name, _Use()).in_flight += 1

    def _leave(self, name: str, error: BaseException | None) -> None:
        use = self._use[name]
        assert use.in_flight > 0, f"{name} was left more often than entered"
        use.in_flight -= 1
        if error is None:
            use.ok += 1
        elif _is_engine_error(error):
            use.engine_errors += 1
        if use.in_flight == 0:
            event = self._idle_events.pop(name, None)
            if event is not None:
                event.set()


def _is_engine_error(error: BaseException) -> bool:
    """The engine's failures are UNAVAILABLE; refusals and cancellations are not the adapter's
    doing.
    """
    return isinstance(error, OpsdError) and error.code == "UNAVAILABLE"


def _draw(snapshot: RoutingSnapshot, canary: str, request_id: str, caller: str) -> Assignment:
    sticky = caller if snapshot.by_caller else ""
    hashed = _hashed(snapshot.salt, "caller", sticky) if sticky else ""
    place = hashed or _hashed(snapshot.salt, "request", request_id)
    mirror_place = _hashed(snapshot.salt, "mirror", request_id)
    return Assignment(
        in_canary=_falls_in(place, snapshot.canary_share),
        share=snapshot.canary_share,
        caller=hashed,
        canary=canary,
        mirrored=_falls_in(mirror_place, snapshot.mirror_share),
    )


def _falls_in(place: str, share: float) -> bool:
    """Whoever is in at some share is in at every larger one."""
    return int(place[:_PLACE_DIGITS], 16) < share * _SHARE_STEPS


def _hashed(salt: str, kind: str, text: str) -> str:
    """32 hexadecimal digits; callers' names are not kept."""
    key = f"{salt}/{kind}".encode()
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=16, key=key).hexdigest()
