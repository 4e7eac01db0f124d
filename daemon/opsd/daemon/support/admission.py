"""Lets samples into the engine, and takes them out again, as the users' load allows."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from opsd.daemon.support import metrics
from opsd.daemon.support.yielding import YieldController

_TICK_S = 0.02
# A step that takes in many prompts at once is long, and cannot be stopped for a user who arrives.
_ENTRIES_PER_TICK = 2


class Permit:
    """Room for one sample. ``revoked`` is set when the sample must leave the engine at once."""

    __slots__ = ("_leave", "revoked", "turn")

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.revoked = False
        self._leave: Callable[[], object] = lambda: None

    def on_revoke(self, leave: Callable[[], object]) -> None:
        """What makes the sample leave; called at most once, and at once if it is time already."""
        self._leave = leave
        if self.revoked:
            leave()

    def revoke(self) -> None:
        if not self.revoked:
            self.revoked = True
            self._leave()


@dataclass(order=True, slots=True)
class _Waiter:
    turn: int
    admitted: asyncio.Future[Permit] = field(compare=False)


class Admission:
    """First come, first served; what was taken out keeps its turn. Sees the users' completions
    (``LoadObserver``) and asks the controller what they leave room for.

    For one event loop. The clock is only for the controller.
    """

    def __init__(
        self, controller: YieldController, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._controller = controller
        self._clock = clock
        self._turns = itertools.count()
        self._waiting: list[_Waiter] = []
        self._inside: dict[int, Permit] = {}  # by turn
        self._ticker: asyncio.Task[None] | None = None
        self._entries = 0  # within the tick that began at
        self._entries_since_s = float("-inf")

    def next_turn(self) -> int:
        """A place in the queue, for one sample, however often it is interrupted."""
        return next(self._turns)

    @asynccontextmanager
    async def room(self, turn: int) -> AsyncIterator[Permit]:
        """Waits for room, holds it until the exit."""
        waiter = _Waiter(turn, asyncio.get_running_loop().create_future())
        heapq.heappush(self._waiting, waiter)
        self._keep_ticking()
        self.review()
        try:
            permit = await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self._leave(waiter.admitted.result())
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
                heapq.heapify(self._waiting)
            raise
        try:
            yield permit
        finally:
            self._leave(permit)

    async def stop(self) -> None:
        """Ends the background work; nobody waits any more."""
        if self._ticker is not None:
            self._ticker.cancel()
            with suppress(asyncio.CancelledError):
                await self._ticker
            self._ticker = None

    def review(self) -> None:
        """Takes out what is too much, the last comer first; lets in what there is room for."""
        now_s = self._clock()
        allowed = self._controller.allowed(now_s)
        metrics.ALLOWED.set(allowed)
        staying = sorted(turn for turn, permit in self._inside.items() if not permit.revoked)
        for turn in reversed(staying[allowed:]):
            self._inside[turn].revoke()
        # One that was told to leave is in the engine until it has left.
        while self._next_waits() and len(self._inside) < allowed and self._may_enter(now_s):
            waiter = heapq.heappop(self._waiting)
            permit = Permit(waiter.turn)
            self._inside[waiter.turn] = permit
            waiter.admitted.set_result(permit)
        self._publish()

    # What users see

    def arrived(self, users: int) -> object:
        tag = self._controller.arrived(self._clock(), users)
        if self._inside or self._waiting:
            self.review()
        return tag

    def first_token(self, tag: object, seconds: float) -> None:
        self._controller.first_token(self._clock(), tag, seconds)

    def tokens(self, num_tokens: int, seconds: float) -> None:
        self._controller.tokens(self._clock(), num_tokens, seconds)

    def left(self, users: int) -> None:
        self._controller.left(self._clock(), users)

    def _next_waits(self) -> bool:
        """Whether anybody waits; forgets those whose task was cancelled and has not run since."""
        while self._waiting and self._waiting[0].admitted.cancelled():
            heapq.heappop(self._waiting)
        return bool(self._waiting)

    def _may_enter(self, now_s: float) -> bool:
        if now_s - self._entries_since_s >= _TICK_S:
            self._entries, self._entries_since_s = 0, now_s
        self._entries += 1
        return self._entries <= _ENTRIES_PER_TICK

    def _leave(self, permit: Permit) -> None:
        del self._inside[permit.turn]
        self.review()

    def _publish(self) -> None:
        self._controller.running(self._clock(), len(self._inside))
        metrics.RUNNING.set(len(self._inside))
        metrics.WAITING.set(len(self._waiting))

    def _keep_ticking(self) -> None:
        if self._ticker is None or self._ticker.done():
            self._ticker = asyncio.create_task(self._tick(), name="run-sampler-admission")

    async def _tick(self) -> None:
        """The controller's phases have ends that nothing else tells of."""
        while self._inside or self._waiting:
            await asyncio.sleep(_TICK_S)
            self.review()
