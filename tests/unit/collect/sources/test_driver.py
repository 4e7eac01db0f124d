"""The driver: enabled sources work, one that fails works on."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from source_world import World

from opsd.daemon.collect.sources.driver import SourceDriver, SourcePart
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.errors import EngineError
from opsd.daemon.types.pairs import Origin
from opsd.daemon.types.problems import Answerable


@dataclass
class Scripted:
    name: str = "harvest"
    doing: str = "works"
    script: list[bool | Exception] = field(default_factory=list)
    steps: int = 0
    cancelled: bool = False

    async def step(self) -> bool:
        self.steps += 1
        if not self.script:
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled = True
        said = self.script.pop(0)
        if isinstance(said, Exception):
            raise said
        return said


@dataclass
class Ready:
    is_ready: bool = True


def driver(
    world: World, source: Scripted, *, enabled: bool = True, ready: bool = True
) -> SourceDriver:
    maker = PairMaker("harvest", Origin.OWN_ATTEMPT, world.store, world.intake, daily_quota=5)
    part = SourcePart(source, maker, Answerable.KNOWN, enabled)
    return SourceDriver([part], world.store, Ready(ready), pause_s=0.001)


async def until(source: Scripted, steps: int) -> None:
    async with asyncio.timeout(10):
        while source.steps < steps:  # noqa: ASYNC110 - a fake, no event
            await asyncio.sleep(0.001)


async def test_a_failed_step_is_told_of_and_made_again(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    source = Scripted(script=[True, EngineError("it died"), ValueError("a bug")])
    driving = driver(world, source)
    await driving.start()
    await until(source, 4)
    (state,) = await driving.states()
    assert state.last_error == "ValueError: a bug"
    assert "step failed" in caplog.text
    await driving.stop()
    assert source.cancelled


async def test_a_good_step_ends_the_error(world: World) -> None:
    source = Scripted(script=[EngineError("it died"), False])
    driving = driver(world, source)
    await driving.start()
    await until(source, 3)
    (state,) = await driving.states()
    assert (state.last_error, state.doing, state.daily_quota) == ("", "works", 5)
    await driving.stop()


async def test_what_is_off_does_nothing(world: World) -> None:
    source = Scripted()
    driving = driver(world, source, enabled=False)
    await driving.start()
    await asyncio.sleep(0.01)
    (state,) = await driving.states()
    assert (source.steps, state.enabled, state.doing) == (0, False, "is off")
    await driving.stop()


async def test_without_an_engine_nothing_is_tried(world: World) -> None:
    source = Scripted()
    driving = driver(world, source, ready=False)
    await driving.start()
    await asyncio.sleep(0.01)
    assert source.steps == 0
    await driving.stop()


async def test_states_count_open_problems(world: World) -> None:
    world.add()
    world.add(reference="")
    (state,) = await driver(world, Scripted()).states()
    assert state.problems_open == 1
