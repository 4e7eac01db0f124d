"""An interrupted evaluation goes on from a real store, on either database."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from gate_bench import CORRECTNESS_ALONE

from opsd.daemon.config.gate import GateConfig, SuiteConfig
from opsd.daemon.config.training import PromptTraining
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.judge import judge_by, rules_of
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.questions import ModelIdentity
from opsd.daemon.gate.registry import SuiteRegistry
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import (
    AdapterHandle,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    FinishReason,
)
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState, TriggerKind

NUM_ITEMS = 30
RUN = Run(
    "0c9c4d3e-25a5-4f4a-9d0c-1c7c3d1d9f51",
    RunState.QUEUED,
    TriggerKind.OPERATOR,
    "me",
    "a test",
    1.0,
    1.0,
)


class SolvingCandidate:
    """An engine whose candidate always answers 1 and whose base always answers 0."""

    def __init__(self) -> None:
        self.num_requests = 0

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("/model", 128, 384, 4, 16)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load_adapter(self, adapter: AdapterHandle) -> None: ...

    async def unload_adapter(self, adapter: AdapterHandle) -> None: ...

    async def health(self) -> EngineHealth:
        return EngineHealth(True)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineChunk]:
        self.num_requests += 1
        await asyncio.sleep(0)
        yield EngineChunk("1" if request.adapter else "0", (1,), 1, 1, FinishReason.STOP)


class Equality:
    async def verify(
        self, verifier: str, reference: str, text: str, *, private: bool = False
    ) -> Verdict:
        kind = VerdictKind.PASS if text == reference else VerdictKind.FAIL
        return Verdict(kind, verifier, "")


class FreeRoutes:
    @contextmanager
    def route(self, request_id: str, explicit_adapter: str = "") -> Iterator[None]:
        yield

    def total_in_flight(self) -> int:
        return 2


def open_suites(store: SqlStore, directory: Path) -> SuiteRegistry:
    path = directory / "s.jsonl"
    records = [
        {"id": f"{i}", "prompt": f"p {i}", "verifier": "exact", "reference": "1", "stratum": "s"}
        for i in range(NUM_ITEMS)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    config = SuiteConfig(
        name="n" * 64, path=str(path), role="target", sealed=True, budget=1, margin=0.0
    )
    registry = SuiteRegistry(store, state_dir=directory, verifiers=["exact"])
    registry.load([config])
    return registry


def evaluator(engine: SolvingCandidate, store: SqlStore, suites: SuiteRegistry) -> GateEvaluator:
    config = GateConfig(concurrency=2, margins=CORRECTNESS_ALONE)
    return GateEvaluator(
        engine,
        Equality(),
        store,
        suites.active,
        config,
        routes=FreeRoutes(),
        decide=judge_by(rules_of(config, teacher="base"), store.save_gate_inputs),
        model=ModelIdentity("f" * 64, "float32"),
        key_prompt=KeyPrompt(PromptTraining()),
    )


async def test_an_evaluation_survives_a_restart(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url, exclusive=False)
    store.create_run(RUN)
    candidate = store.add_adapter(
        Adapter(
            name="opsd-" + "c" * 16,
            sha256="c" * 64,
            lora_id=0,
            state=AdapterState.CANDIDATE,
            run_id=RUN.id,
            path="/adapters/c",
            rank=8,
            alpha=16.0,
            size_bytes=1,
            model_fingerprint="f" * 64,
            created_unix_s=1.0,
        )
    )
    engine = SolvingCandidate()
    half = asyncio.Event()

    def note(done: int, total: int) -> None:
        assert total == 2 * NUM_ITEMS
        if done >= NUM_ITEMS:
            half.set()

    first = evaluator(engine, store, open_suites(store, tmp_path))
    task = asyncio.create_task(first.evaluate(RUN, candidate, None, note))
    await half.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    store.close()

    store = open_store(store_url, exclusive=False)
    again_suites = open_suites(store, tmp_path)
    engine = SolvingCandidate()
    again = evaluator(engine, store, again_suites)
    steps: list[int] = []
    report = await again.evaluate(RUN, candidate, None, lambda done, total: steps.append(done))
    assert NUM_ITEMS <= steps[0] < 2 * NUM_ITEMS
    assert engine.num_requests == 2 * NUM_ITEMS - steps[0]
    assert report.verdict is GateVerdict.PASS
    # The budget is one gate, and the one that was interrupted did not pay twice.
    assert again_suites.get("n" * 64).queries_used == 1
    other = replace(RUN, id="another-run")
    refused = await again.evaluate(other, candidate, None, lambda done, total: None)
    assert refused.verdict is GateVerdict.INCONCLUSIVE
    assert "budget of 1 gates is spent" in refused.explanation
    assert engine.num_requests == 2 * NUM_ITEMS - steps[0]
    store.close()
