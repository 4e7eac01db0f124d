"""Sources on a real store, with an engine that answers as a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.collect.intake import Outcome
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.collect.sources.problems import make_problem
from opsd.daemon.collect.sources.sampling import OwnSampler
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.engine import (
    AdapterHandle,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    FinishReason,
)
from opsd.daemon.types.pairs import Origin, PairInput, SuiteItem, Verdict
from opsd.daemon.types.problems import Problem, ProblemInput
from opsd.daemon.verify.checks import check_exact, check_numeric

HELD_OUT_PROMPT = "Tom has 61 apples, loses 40. How many apples?"
INCUMBENT = AdapterHandle("opsd-incumbent", 7, "/nowhere")

Write = Callable[[EngineRequest, int], str]


class ScriptedEngine:
    """Writes what ``write`` says for a request and its number, a word a chunk."""

    def __init__(self) -> None:
        self.write: Write = lambda request, number: "Answer: 2"
        self.requests: list[EngineRequest] = []
        self.running = 0
        self.hold: asyncio.Event | None = None  # every completion waits for it after its first word
        self.cut_off_at = 1000  # words

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("m", 512, 384, 6, 64)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load_adapter(self, adapter: AdapterHandle) -> None: ...

    async def unload_adapter(self, adapter: AdapterHandle) -> None: ...

    async def health(self) -> EngineHealth:
        return EngineHealth(True)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineChunk]:
        number = len(self.requests)
        self.requests.append(request)
        words = self.write(request, number).split(" ")
        self.running += 1
        try:
            for place, word in enumerate(words[: self.cut_off_at]):
                await asyncio.sleep(0)
                yield EngineChunk(word + " ", (place,), 3, place + 1)
                if self.hold is not None:
                    await self.hold.wait()
            cut_off = len(words) > self.cut_off_at
            reason = FinishReason.LENGTH if cut_off else FinishReason.STOP
            yield EngineChunk("", (), 3, min(len(words), self.cut_off_at), reason)
        finally:
            self.running -= 1


class Permit:
    def __init__(self) -> None:
        self.leave: Callable[[], object] = lambda: None

    def on_revoke(self, leave: Callable[[], object]) -> None:
        self.leave = leave


class OpenRoom:
    """Lets everybody in; ``inside`` can be taken out."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.inside: list[Permit] = []

    def next_turn(self) -> int:
        return len(self.turns)

    @asynccontextmanager
    async def room(self, turn: int) -> AsyncIterator[Permit]:
        self.turns.append(turn)
        permit = Permit()
        self.inside.append(permit)
        try:
            yield permit
        finally:
            self.inside.remove(permit)


@dataclass
class Lease:
    name: str = INCUMBENT.name
    adapter: AdapterHandle | None = INCUMBENT


class Incumbents:
    def __init__(self) -> None:
        self.held = 0

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        self.held += 1
        try:
            yield Lease()
        finally:
            self.held -= 1


@dataclass
class Users:
    in_flight: int = 0
    idle: float = 1e9

    def idle_s(self) -> float:
        return 0.0 if self.in_flight else self.idle


class InlineVerifier:
    """The real checks, without a process."""

    known_verifiers = ("exact", "math", "numeric")

    async def check_reference(self, verifier: str, reference: str) -> str:
        return ""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        check = check_numeric if verifier == "numeric" else check_exact
        kind, evidence = check(reference, text or "")
        return Verdict(kind, verifier, evidence)


@dataclass
class NotingIntake:
    """The real intake; notes what comes in."""

    inner: CollectionService
    seen: list[tuple[PairInput, str, Origin]] = field(default_factory=list)

    async def submit(
        self, given: PairInput, submitter: str, *, origin: Origin = Origin.SUBMITTED
    ) -> Outcome:
        self.seen.append((given, submitter, origin))
        return await self.inner.intake.submit(given, submitter, origin=origin)

    def form_mistakes(self, given: PairInput) -> list[str]:
        return self.inner.intake.form_mistakes(given)

    async def mistakes(self, given: PairInput) -> list[str]:
        return await self.inner.intake.mistakes(given)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class World:
    store: SqlStore
    engine: ScriptedEngine
    room: OpenRoom
    incumbents: Incumbents
    users: Users
    verifier: InlineVerifier
    held_out: HeldOutIndex
    intake: NotingIntake
    sampler: OwnSampler
    clock: Clock

    def add(self, prompt: str = "", reference: str = "2", **fields: object) -> Problem:
        """A problem in the store."""
        given = ProblemInput(
            id=str(uuid4()),
            prompt=prompt or f"What is 1 + 1? ({uuid4()})",
            verifier="numeric",
            reference=reference,
            priority=int(str(fields.get("priority", 0))),
        )
        origin = fields.get("origin", Origin.SUBMITTED)
        assert isinstance(origin, Origin)
        problem = make_problem(given, "ana", origin=origin, now_unix_s=self.clock())
        return self.store.add_problem(problem).problem


@contextmanager
def make_world(directory: Path) -> Iterator[World]:
    clock = Clock()
    store = open_store(sqlite_url(directory), clock=clock)
    engine, room, incumbents = ScriptedEngine(), OpenRoom(), Incumbents()
    verifier = InlineVerifier()
    held_out = HeldOutIndex({"hard": [SuiteItem("1", HELD_OUT_PROMPT, "numeric", "21")]})
    collection = CollectionService(store, verifier, held_out, CollectConfig())
    yield World(
        store,
        engine,
        room,
        incumbents,
        Users(),
        verifier,
        held_out,
        NotingIntake(collection),
        OwnSampler(engine, incumbents, room),
        clock,
    )
    collection.close()
    store.close()
