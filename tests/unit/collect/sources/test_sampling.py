"""The incumbent's samples: taken out when users come, drawn again as they were."""

from __future__ import annotations

import asyncio

import pytest
from source_world import INCUMBENT, World

from opsd.daemon.config.sources import HarvestConfig
from opsd.daemon.errors import EngineError


async def spin(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


async def test_an_interrupted_sample_leaves_at_once_and_is_drawn_again(world: World) -> None:
    world.engine.write = lambda request, number: "a b c"
    world.engine.hold = asyncio.Event()
    work = asyncio.create_task(
        world.sampler.sample("harvest", "1+1?", HarvestConfig(), num_samples=2, seed_of="x")
    )
    await spin()
    assert world.engine.running == 2
    world.room.inside[0].leave()
    await spin(3)
    assert world.engine.running == 1
    world.engine.hold.set()
    drawn = await work
    assert drawn.adapter == INCUMBENT.name
    assert [trace.text.strip() for trace in drawn.traces] == ["a b c", "a b c"]
    seeds = [request.sampling.seed for request in world.engine.requests]
    assert seeds[2] == seeds[0]
    assert seeds[1] != seeds[0]


async def test_the_first_error_ends_the_others(world: World) -> None:
    world.engine.hold = asyncio.Event()

    def fail(request: object, number: int) -> str:
        if number == 1:
            raise EngineError("it died")
        return "a b"

    world.engine.write = fail
    with pytest.raises(EngineError):
        await world.sampler.sample("harvest", "?", HarvestConfig(), num_samples=2, seed_of="x")
    assert (world.engine.running, world.incumbents.held, world.room.inside) == (0, 0, [])


async def test_cancelling_takes_everything_out(world: World) -> None:
    world.engine.hold = asyncio.Event()
    work = asyncio.create_task(
        world.sampler.sample("harvest", "?", HarvestConfig(), num_samples=3, seed_of="x")
    )
    await spin()
    assert world.engine.running == 3
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert (world.engine.running, world.incumbents.held, world.room.inside) == (0, 0, [])


async def test_a_round_has_a_time_limit(world: World) -> None:
    world.engine.hold = asyncio.Event()
    config = HarvestConfig(sample_timeout_s=0.01)
    with pytest.raises(TimeoutError):
        await world.sampler.sample("harvest", "?", config, num_samples=1, seed_of="x")
    assert world.engine.running == 0
