"""The model's own samples from a real engine become pairs, and leave it for users."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
import pytest_asyncio

from opsd.daemon.adapters.routing import Router
from opsd.daemon.app.sources import build_sources
from opsd.daemon.collect.hygiene.contamination import HeldOutIndex
from opsd.daemon.collect.service import CollectionService
from opsd.daemon.collect.sources.driver import SourceDriver
from opsd.daemon.collect.sources.problems import make_problem
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.config.sources import HarvestConfig, SelfConsistencyConfig, SelfPlayConfig
from opsd.daemon.serve.load import UserLoad
from opsd.daemon.serve.vllm_engine import VllmEngine
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.yielding import YieldController, YieldPolicy
from opsd.daemon.types.pairs import Origin, SuiteItem, Verdict, VerdictKind
from opsd.daemon.types.problems import Problem, ProblemInput, ProblemState

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

HELD_OUT = "What is 17 + 25?"
NUM_PROBLEMS = 5


class Lenient:
    """A model of noise solves nothing: any text that can be stored passes, and all are equal."""

    known_verifiers = ("exact", "math", "numeric")

    async def check_reference(self, verifier: str, reference: str) -> str:
        return ""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        passed = bool(text and text.strip()) and "\0" not in str(text)
        return Verdict(VerdictKind.PASS if passed else VerdictKind.FAIL, verifier, "")


@dataclass
class Ready:
    is_ready: bool = True


@dataclass
class Live:
    store: SqlStore
    driver: SourceDriver
    load: UserLoad
    router: Router

    def add(self, prompt: str, reference: str, origin: Origin = Origin.SUBMITTED) -> Problem:
        given = ProblemInput(str(uuid4()), prompt, "exact", reference)
        problem = make_problem(given, "ana", origin=origin, now_unix_s=1.0)
        return self.store.add_problem(problem).problem

    async def until_over(self) -> None:
        """No problem is open."""
        async with asyncio.timeout(120):
            while sum(  # noqa: ASYNC110 - the store has no event
                (await asyncio.to_thread(self.store.count_open_problems)).values()
            ):
                await asyncio.sleep(0.05)


def config(max_tokens: int) -> CollectConfig:
    return CollectConfig(
        harvest=HarvestConfig(enabled=True, max_tokens=max_tokens, max_tries=1, samples=8),
        self_consistency=SelfConsistencyConfig(enabled=True, max_tokens=max_tokens, max_tries=1),
        self_play=SelfPlayConfig(
            enabled=True, max_tokens=max_tokens, max_tries=1, samples=3, idle_after_s=0.2
        ),
    )


@pytest_asyncio.fixture(loop_scope="session")
async def live(engine: VllmEngine, tmp_path: Path) -> AsyncIterator[Live]:
    store = open_store(sqlite_url(tmp_path))
    held_out = HeldOutIndex({"s": [SuiteItem("1", HELD_OUT, "exact", "42")]})
    verifier, router, load = Lenient(), Router(), UserLoad()
    collect = config(max_tokens=400)
    collection = CollectionService(store, verifier, held_out, collect)
    admission = Admission(YieldController(YieldPolicy(8)))
    load.observe(admission)
    _, driver = build_sources(
        collect,
        collection,
        store=store,
        verifier=verifier,
        held_out=held_out,
        engine=engine,
        router=router,
        room=admission,
        users=load,
        ready=Ready(),
    )
    yield Live(store, driver, load, router)
    await driver.stop()
    await admission.stop()
    collection.close()
    store.close()


async def test_problems_become_pairs_of_the_models_own_traces(live: Live) -> None:
    known = [live.add(f"{number}+1?", "x") for number in range(NUM_PROBLEMS)]
    held_out = live.add(HELD_OUT, "42")
    await live.driver.start()
    await live.until_over()
    states = await live.driver.states()
    await live.driver.stop()
    assert [state.last_error for state in states] == ["", "", ""]
    assert live.router.total_in_flight() == 0
    found = [live.store.get_problem(problem.input.id) for problem in known]
    solved = [problem for problem in found if problem.state is ProblemState.SOLVED]
    assert solved, [problem.note for problem in found]
    assert all(problem.attempts == 8 for problem in found)
    pairs = {stored.pair.input.id: stored for stored in live.store.pairs_after(0, limit=99)}
    assert set(pairs) == {problem.pair_id for problem in solved}
    for problem in solved:
        stored = pairs[problem.pair_id]
        assert stored.pair.input.prompt == problem.input.prompt
        assert json.loads(stored.provenance_json)["adapter"] == "base"
    skipped = live.store.get_problem(held_out.input.id)
    assert (skipped.state, skipped.attempts) == (ProblemState.HELD_OUT, 0)


async def test_self_play_leaves_the_engine_when_a_user_comes(live: Live) -> None:
    posed = live.add("3+4?", "", Origin.SELF_PLAY)
    await live.driver.start()
    async with asyncio.timeout(60):
        while not live.router.total_in_flight():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    live.load.arrived()
    async with asyncio.timeout(60):
        while live.router.total_in_flight():  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    await live.driver.stop()
    found = live.store.get_problem(posed.input.id)
    assert (found.state, found.tries) == (ProblemState.OPEN, 0)
    live.load.left()
