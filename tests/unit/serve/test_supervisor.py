"""A dead engine comes back, with its adapters, or is given up loudly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from opsd.daemon.errors import EngineError
from opsd.daemon.serve.state import Availability, ServingState
from opsd.daemon.serve.supervisor import RestartPolicy, Supervisor

QUICK = RestartPolicy(max_attempts=3, first_delay_s=0.001, poll_s=0.001)


class MortalEngine:
    def __init__(self) -> None:
        self.healthy = True
        self.start_errors: list[Exception] = []
        self.starts = 0

    async def start(self) -> None:
        self.starts += 1
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.healthy = True

    async def health(self):
        from opsd.daemon.types.engine import EngineHealth

        return EngineHealth(self.healthy, "" if self.healthy else "the engine's process died")


class Scene:
    def __init__(self) -> None:
        self.engine = MortalEngine()
        self.availability = Availability()
        self.availability.set(ServingState.READY)
        self.log: list[str] = []
        self.availability.subscribe(lambda: self.log.append(self.availability.state))
        self.supervisor = Supervisor(
            self.engine,  # type: ignore[arg-type]
            self.reload,
            self.availability,
            QUICK,
        )

    async def reload(self) -> None:
        self.log.append("reload")

    async def until_state(self, state: ServingState) -> None:
        async with asyncio.timeout(10):
            while self.availability.state is not state:  # noqa: ASYNC110 - polled on purpose
                await asyncio.sleep(0.001)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    scene = Scene()
    scene.supervisor.watch()
    yield scene
    await scene.supervisor.stop()


async def test_serves_again_only_after_its_adapters_are_loaded(scene: Scene) -> None:
    scene.engine.healthy = False
    await scene.until_state(ServingState.STARTING)
    assert "the engine's process died" in scene.availability.message
    await scene.until_state(ServingState.READY)
    assert scene.log == ["starting", "reload", "ready"]
    assert scene.availability.message == ""


async def test_tries_again(scene: Scene) -> None:
    scene.engine.start_errors = [EngineError("no memory"), RuntimeError("a bug")]
    scene.engine.healthy = False
    await scene.until_state(ServingState.STARTING)
    await scene.until_state(ServingState.READY)
    assert scene.engine.starts == 3
    assert scene.log.count("reload") == 1


async def test_gives_up_after_the_last_attempt(scene: Scene) -> None:
    scene.engine.start_errors = [EngineError("no memory")] * 10
    scene.engine.healthy = False
    await asyncio.wait_for(scene.supervisor.failed.wait(), 10)
    assert scene.availability.state is ServingState.FAILED
    assert "3 attempts (no memory)" in scene.availability.message
    assert scene.engine.starts == 3


async def test_an_engine_that_dies_over_and_over_is_given_up_too(scene: Scene) -> None:
    for _ in range(3):
        scene.engine.healthy = False
        await scene.until_state(ServingState.STARTING)
        await scene.until_state(ServingState.READY)
    scene.engine.healthy = False
    await asyncio.wait_for(scene.supervisor.failed.wait(), 10)
    assert scene.engine.starts == 3


async def test_a_draining_daemon_starts_no_engine(scene: Scene) -> None:
    scene.availability.set(ServingState.DRAINING, "stopping")
    scene.engine.healthy = False
    await asyncio.sleep(0.05)
    assert scene.engine.starts == 0
    assert scene.availability.state is ServingState.DRAINING


def test_delays_double_up_to_a_bound() -> None:
    policy = RestartPolicy(first_delay_s=0.5, max_delay_s=3)
    assert [policy.delay_s(n) for n in range(1, 6)] == [0.5, 1, 2, 3, 3]
