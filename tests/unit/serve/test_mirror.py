"""The mirror answers unseen: users get theirs as ever, and it is the first to go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from opsd.daemon.adapters.routing import RoutingSnapshot
from opsd.daemon.errors import EngineError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.mirror import PRIORITY, Mirror
from opsd.daemon.types.canary import Assignment, Reply
from opsd.daemon.types.engine import AdapterHandle
from opsd.v1 import inference_pb2 as pb

OLD = AdapterHandle("opsd-old", 1, "/a")
NEW = AdapterHandle("opsd-new", 2, "/b")
ASK = pb.GenerateRequest(prompt="hello", sampling=pb.SamplingParams(max_tokens=3))


@dataclass
class Watched:
    replies: list[tuple[Assignment, Reply]] = field(default_factory=list)
    pairs: list[tuple[str, Reply, Reply]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    fails: bool = False

    def replied(self, drawn: Assignment, reply: Reply) -> None:
        if self.fails:
            raise ZeroDivisionError
        self.replies.append((drawn, reply))

    def mirrored(self, canary: str, incumbent: Reply, mirror: Reply) -> None:
        self.pairs.append((canary, incumbent, mirror))


@pytest.fixture
async def watched(door: Any) -> AsyncIterator[Watched]:
    """The door with a canary that gets no user, and all requests mirrored."""
    observer = Watched()
    service = door.service
    mirror = Mirror(
        door.engine,
        door.router,
        observer,
        service._load,
        busy_above=2,
        longest_wait_s=0.2,
        look_through=lambda text, adapter: observer.texts.append((adapter, text)),
    )
    service._observer, service._mirror = observer, mirror
    door.router.set_resident(lambda: (OLD, NEW))
    door.router.swap(RoutingSnapshot(OLD, NEW, 0.0, 1, mirror_share=1.0))
    mirror.start()
    yield observer
    await mirror.stop()


def count(outcome: str) -> float:
    return float(metrics.MIRRORED.labels(outcome)._value.get())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.005)


async def test_the_canary_answers_what_the_incumbent_answered(door: Any, watched: Watched) -> None:
    answer = await door.stub.Generate(ASK)
    assert answer.adapter == OLD.name
    await until(lambda: len(watched.pairs) == 1)
    name, incumbent, mirrored = watched.pairs[0]
    assert name == NEW.name
    assert (incumbent.num_tokens, incumbent.truncated) == (3, True)
    assert (mirrored.num_tokens, mirrored.truncated) == (3, True)
    assert watched.texts == [(NEW.name, answer.text)]
    users, image = door.engine.requests
    assert (users.adapter, users.priority) == (OLD, 0)
    assert (image.adapter, image.priority) == (NEW, PRIORITY)
    assert (image.prompt, image.sampling) == (users.prompt, users.sampling)
    assert image.request_id != users.request_id


async def test_an_image_is_no_attempt_and_no_request_of_a_user(door: Any, watched: Watched) -> None:
    await door.stub.Generate(ASK)
    await until(lambda: len(watched.pairs) == 1)
    await door.recorder.flush()
    assert [attempt.adapter for attempt in door.attempts] == [OLD.name]
    assert len(watched.replies) == 1
    assert door.service.in_flight == 0


async def test_the_incumbents_errors_are_mirrored_too(door: Any, watched: Watched) -> None:
    door.engine.fails = True
    stream = pb.GenerateRequest(prompt="hello", sampling=pb.SamplingParams(max_tokens=3))
    with pytest.raises(Exception, match="died"):
        async for _ in door.stub.GenerateStream(stream):
            pass
    await until(lambda: len(watched.pairs) == 1)
    assert watched.replies[0][1].engine_error
    assert watched.pairs[0][1].engine_error


async def test_under_load_images_are_dropped_before_they_begin(door: Any, watched: Watched) -> None:
    load = door.service._load
    for _ in range(3):
        load.arrived()
    before = count("busy")
    await door.stub.Generate(ASK)
    await until(lambda: count("busy") == before + 1)
    assert watched.pairs == []
    assert len(door.engine.requests) == 1


async def test_the_queue_is_bounded(door: Any, watched: Watched) -> None:
    door.service._load.arrived()
    mirror = Mirror(
        door.engine, door.router, watched, door.service._load, busy_above=0, max_queued=2
    )
    drawn = Assignment(False, 0.0, "", NEW.name, mirrored=True)
    mirror.start()
    before = count("queue_full")
    for _ in range(9):
        mirror.offer(None, drawn, Reply(False))  # type: ignore[arg-type]
    assert count("queue_full") == before + 7
    await mirror.stop()


async def test_a_canary_that_is_gone_is_not_asked(door: Any, watched: Watched) -> None:
    door.service._load.arrived()
    door.service._load.arrived()
    door.service._load.arrived()
    await door.stub.Generate(ASK)
    door.router.swap(RoutingSnapshot(OLD))
    for _ in range(3):
        door.service._load.left()
    before = count("stale")
    await until(lambda: count("stale") >= before)
    await asyncio.sleep(0.1)
    assert watched.pairs == []


async def test_counting_beside_a_reply_cannot_break_it(door: Any, watched: Watched) -> None:
    watched.fails = True
    assert (await door.stub.Generate(ASK)).text == "ooo"


async def test_what_a_user_cancels_is_not_counted(door: Any, watched: Watched) -> None:
    door.engine.gate.clear()
    call = door.stub.Generate(ASK)
    await until(lambda: door.engine.running == 1)
    call.cancel()
    await until(lambda: door.engine.running == 0)
    door.engine.gate.set()
    await asyncio.sleep(0.05)
    assert (watched.replies, watched.pairs) == ([], [])


async def test_callers_are_told_apart_by_their_metadata(door: Any, watched: Watched) -> None:
    for caller in ("ann", "ben", "ann"):
        await door.stub.Generate(ASK, metadata=(("x-opsd-actor", caller),))
    await door.stub.Generate(ASK)
    names = [drawn.caller for drawn, _ in watched.replies]
    assert names[0] == names[2] != names[1]
    assert names[3] == ""
    await door.recorder.flush()
    assert [attempt.caller for attempt in door.attempts] == names
    assert {attempt.canary_share for attempt in door.attempts} == {0.0}


async def test_an_image_that_fails_in_the_engine_is_the_canarys_error(
    door: Any, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = door.engine.generate

    def only_old(request: Any) -> Any:
        if request.adapter is NEW:
            raise EngineError("no")
        return generate(request)

    monkeypatch.setattr(door.engine, "generate", only_old)
    await door.stub.Generate(ASK)
    await until(lambda: len(watched.pairs) == 1)
    assert watched.pairs[0][2].engine_error
    assert door.router.in_flight(NEW.name) == 0
