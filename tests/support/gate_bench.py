"""An evaluator whose engine, verifier and store are made of plain Python."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from opsd.daemon.config.gate import BehaviourConfig, GateConfig, SuiteConfig
from opsd.daemon.config.margins import MarginsConfig
from opsd.daemon.config.training import PromptTraining
from opsd.daemon.errors import (
    NotFoundError,
)
from opsd.daemon.gate.answers import Timing
from opsd.daemon.gate.evaluate import GateEvaluator
from opsd.daemon.gate.inputs import digest
from opsd.daemon.gate.judge import judge_by, rules_of
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.gate.questions import ModelIdentity
from opsd.daemon.gate.suites import SuiteSet, load_suites
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.engine import (
    AdapterHandle,
    AnswerScorer,
    EngineChunk,
    EngineHealth,
    EngineInfo,
    EngineRequest,
    FinishReason,
)
from opsd.daemon.types.gate import GateReport, Measurement, SuiteUse
from opsd.daemon.types.measured import AnswerRecord
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.daemon.types.suites import CachedAnswer, QueryUse

CANDIDATE = Adapter(
    name="opsd-" + "c" * 16,
    sha256="c" * 64,
    lora_id=7,
    state=AdapterState.CANDIDATE,
    run_id="run",
    path="/adapters/c",
    rank=8,
    alpha=16.0,
    size_bytes=1,
    model_fingerprint="f" * 64,
    created_unix_s=0.0,
)
INCUMBENT = AdapterHandle("opsd-" + "1" * 16, 3, "/adapters/1")
RUN = Run("run", RunState.EVALUATING, TriggerKind.OPERATOR, "me", "", 0.0, 0.0)

CORRECTNESS_ALONE = MarginsConfig.model_validate(
    {name: 0.0 for name in MarginsConfig.model_fields if name != "literacy"}
)

Behaviour = Callable[[EngineRequest, int], str]
"""(request, how often this adapter was asked this before) → answer; may raise."""


def right(request: EngineRequest, attempt: int) -> str:
    return request.messages[0].content.removeprefix("say ")


def wrong(request: EngineRequest, attempt: int) -> str:
    return "nonsense"


class FakeEngine:
    def __init__(self, incumbent: Behaviour = wrong, candidate: Behaviour = right) -> None:
        self.behaviours = {CANDIDATE.name: candidate, INCUMBENT.name: incumbent, "base": incumbent}
        self.requests: list[EngineRequest] = []
        self.asked: Counter[tuple[str, str]] = Counter()
        self.in_flight = 0
        self.peak = 0
        self.healthy = True
        self.health_checks = 0
        self.delay_s = 0.0
        self.finish = FinishReason.STOP

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("/model", 128, 384, 4, 16)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def load_adapter(self, adapter: AdapterHandle) -> None: ...

    async def unload_adapter(self, adapter: AdapterHandle) -> None: ...

    async def health(self) -> EngineHealth:
        self.health_checks += 1
        if self.health_checks > 3:
            self.healthy = True
        return EngineHealth(self.healthy)

    async def generate(self, request: EngineRequest) -> AsyncIterator[EngineChunk]:
        self.requests.append(request)
        name = request.adapter.name if request.adapter else "base"
        key = (name, request.messages[0].content)
        attempt = self.asked[key]
        self.asked[key] += 1
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            text = self.behaviours[name](request, attempt)
            yield EngineChunk(text[:2], (1,), 3, 1)
            yield EngineChunk(text[2:], (2,), 3, 2, self.finish)
        finally:
            self.in_flight -= 1


class FakeVerifier:
    """Equality; ``error`` it cannot judge, ``flaky`` not at first."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.private: Counter[bool] = Counter()

    async def verify(
        self, verifier: str, reference: str, text: str, *, private: bool = False
    ) -> Verdict:
        self.seen[text] += 1
        self.private[private] += 1
        if text == "error" or (text == "flaky" and self.seen[text] == 1):
            return Verdict(VerdictKind.ERROR, verifier, "timed out")
        solved = text == reference
        return Verdict(VerdictKind.PASS if solved else VerdictKind.FAIL, verifier, "")


class FakeStore:
    def __init__(self) -> None:
        self.records: dict[CachedAnswer, tuple[AnswerRecord, str]] = {}
        self.saves = 0
        self.uses: dict[tuple[str, str], set[str]] = {}
        self.budgets: dict[str, int] = {}
        self.trims = 0
        self.claimed: list[str] = []
        self.earlier_uses = 0
        self.inputs: dict[str, bytes] = {}

    def save_answer(self, key: CachedAnswer, record: AnswerRecord, *, run_id: str) -> None:
        assert len(key.adapter) <= 128
        assert len(key.conditions) == 64
        self.saves += 1
        self.records[key] = (record, run_id)

    def recall_answers(
        self, adapter: str, conditions: str, *, run_id: str
    ) -> dict[tuple[str, int], AnswerRecord]:
        return {
            (key.item_id, key.sample): record
            for key, (record, saved_by) in self.records.items()
            if (key.adapter, key.conditions) == (adapter, conditions)
            and (record.solved is not None or saved_by == run_id)
        }

    def answer_outcomes(self, conditions: str) -> list[dict[str, bool]]:
        raise NotImplementedError

    def trim_answers(self, *, max_rows: int, max_age_s: float) -> int:
        self.trims += 1
        return 0

    def claim_suite_uses(
        self, run_id: str, suites: Sequence[SuiteUse], *, alpha: float
    ) -> dict[str, int]:
        assert alpha == 0.05
        self.claimed += [suite.name for suite in suites]
        return {suite.name: self.earlier_uses for suite in suites}

    def save_gate_inputs(self, run_id: str, data: bytes) -> str:
        self.inputs[run_id] = data
        return digest(data)

    def use_suite(self, name: str, version: str, run_id: str) -> QueryUse:
        runs = self.uses.setdefault((name, version), set())
        budget = self.budgets.get(name, 0)
        if run_id not in runs and budget and len(runs) >= budget:
            return QueryUse(False, len(runs), budget)
        runs.add(run_id)
        return QueryUse(True, len(runs), budget)


class FakeRoutes:
    def __init__(self, users: int = 0) -> None:
        self.held: Counter[str] = Counter()
        self.users = users
        self.loaded = {CANDIDATE.name, INCUMBENT.name, "base"}

    @contextmanager
    def route(self, request_id: str, explicit_adapter: str = "") -> Iterator[None]:
        if explicit_adapter not in self.loaded:
            raise NotFoundError(f"{explicit_adapter} is not loaded")
        self.held[explicit_adapter] += 1
        try:
            yield
        finally:
            self.held[explicit_adapter] -= 1

    def total_in_flight(self) -> int:
        return self.users + self.held.total()


class Bench:
    """One evaluator with everything around it."""

    def __init__(self, directory: Path, *, num_items: int = 12, engine: FakeEngine | None = None):
        configs = []
        for name, role in (("medium", "target"), ("easy", "guard")):
            path = directory / f"{name}.jsonl"
            records = [
                {
                    "id": f"{number}",
                    "prompt": f"say {name}-{number}",
                    "verifier": "exact",
                    "reference": f"{name}-{number}",
                }
                for number in range(num_items)
            ]
            path.write_text("\n".join(map(json.dumps, records)))
            configs.append(
                SuiteConfig.model_validate({"name": name, "path": str(path), "role": role})
            )
        self.suites: SuiteSet = load_suites(configs, verifiers=["exact"])
        self.engine = engine or FakeEngine()
        self.verifier = FakeVerifier()
        self.store = FakeStore()
        self.routes = FakeRoutes()
        self.config = GateConfig(
            concurrency=4,
            max_tokens=64,
            max_error_fraction=0.2,
            measure_base=False,
            behaviour=BehaviourConfig(num_literacy_items=0),
            margins=CORRECTNESS_ALONE,
        )
        self.scorer: AnswerScorer | None = None
        self.progress: list[tuple[int, int]] = []
        self.recovery_timeout_s = 5.0
        self.answer_timeout_s = 5.0

    def evaluator(self) -> GateEvaluator:
        return GateEvaluator(
            self.engine,
            self.verifier,
            self.store,
            lambda: self.suites,
            self.config,
            routes=self.routes,
            decide=judge_by(rules_of(self.config, teacher="base"), self.store.save_gate_inputs),
            model=ModelIdentity("f" * 64, "float32"),
            key_prompt=KeyPrompt(PromptTraining()),
            scorer=self.scorer,
            timing=Timing(
                answer_s=self.answer_timeout_s, recovery_s=self.recovery_timeout_s, poll_s=0.001
            ),
        )

    async def evaluate(self, incumbent: AdapterHandle | None = None) -> GateReport:
        return await self.evaluator().evaluate(RUN, CANDIDATE, incumbent, self.on_progress)

    async def measure(self, adapter: AdapterHandle | None) -> list[Measurement]:
        return await self.evaluator().measure(RUN, adapter, self.on_progress)

    def on_progress(self, done: int, total: int) -> None:
        self.progress.append((done, total))
