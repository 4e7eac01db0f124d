"""Who is let into the engine, and what stays behind of those who went away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from opsd.daemon.support.admission import Admission
from opsd.daemon.support.yielding import YieldController, YieldPolicy


class Room(YieldController):
    """So many as the test says."""

    def __init__(self) -> None:
        super().__init__(YieldPolicy(max_samples=64))
        self.number = 0

    def allowed(self, now_s: float) -> int:
        return self.number


@asynccontextmanager
async def admission(room: Room) -> AsyncIterator[Admission]:
    made = Admission(room)
    try:
        yield made
    finally:
        await made.stop()


async def sample(admission: Admission, inside: asyncio.Event) -> None:
    async with admission.room(admission.next_turn()):
        inside.set()
        await asyncio.sleep(3600)


@pytest.mark.asyncio
async def test_who_went_away_while_waiting_takes_no_room() -> None:
    room = Room()
    async with admission(room) as made:
        gone, there = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(sample(made, gone))
        second = asyncio.create_task(sample(made, there))
        await asyncio.sleep(0)
        room.number = 1
        first.cancel()
        # Before the cancelled task has run.
        made.review()
        async with asyncio.timeout(10):
            await there.wait()
        assert not gone.is_set()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        made.review()
        # Nothing is left in the engine, as far as the controller knows.
        assert room._running == 0


@pytest.mark.asyncio
async def test_who_went_away_with_a_permit_on_its_way_gives_it_back() -> None:
    room = Room()
    async with admission(room) as made:
        inside, other = asyncio.Event(), asyncio.Event()
        first = asyncio.create_task(sample(made, inside))
        await asyncio.sleep(0)
        room.number = 1
        made.review()
        first.cancel()
        second = asyncio.create_task(sample(made, other))
        async with asyncio.timeout(10):
            await other.wait()
        assert not inside.is_set()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert room._running == 0
