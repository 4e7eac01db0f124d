"""A store in memory, a gate that says what it is told, and a laboratory around the controller."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.errors import ConcurrentChangeError, NotFoundError, StateError, StoreError
from opsd.daemon.runs.controller import RunController
from opsd.daemon.runs.launcher import LaunchRequest, TorchrunLauncher
from opsd.daemon.runs.ports import Canaries
from opsd.daemon.runs.spec import ModelFacts
from opsd.daemon.runs.states import is_final
from opsd.daemon.runs.timing import Timing
from opsd.daemon.store.api import Page
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    Measurement,
    SuiteReport,
    SuiteRole,
)
from opsd.daemon.types.pair_sets import Draw, DrawPolicy
from opsd.daemon.types.pairs import Pair, PairCounts, PairInput, PairStatus, Verdict, VerdictKind
from opsd.daemon.types.runs import CurvePoint, PoolLease, Run, RunState, Transition, TriggerKind
from opsd.daemon.types.text import prompt_key

FAKE_TRAINER = Path(__file__).with_name("fake_trainer.py")
MODEL = ModelFacts(path="/models/m", dtype="float32", fingerprint="f" * 64, max_lora_rank=64)


def make_pair(number: int, *, source: str = "") -> Pair:
    given = PairInput(
        id=f"00000000-0000-4000-8000-{number:012d}",
        prompt=f"What is {number}+1?",
        solution=f"{number + 1}",
        verifier="numeric",
        reference=str(number + 1),
        source=source,
        stratum="easy",
    )
    return Pair(
        input=given,
        status=PairStatus.VERIFIED,
        verdict=Verdict(VerdictKind.PASS, "numeric", ""),
        submitter="t",
        created_unix_s=float(number),
        content_sha256="",
        prompt_key=prompt_key(given.prompt),
    )


class FakeStore:
    """The part of the store that runs use, in memory."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.pairs: list[Pair] = []
        self.adapters: dict[str, Adapter] = {}
        self.gates: list[GateReport] = []
        self.snapshots: dict[str, tuple[str, ...]] = {}
        self.solves: dict[str, dict[str, tuple[int, int]]] = {}
        self.audit: list[tuple[str, str, str, str]] = []
        self.lease: PoolLease | None = None
        self.incumbent = Incumbent()
        self.down = False

    def _up(self) -> None:
        if self.down:
            raise StoreError("the store is down")

    def create_run(self, run: Run) -> Run:
        with self._lock:
            for older in self.runs.values():
                if run.request_id and older.request_id == run.request_id:
                    return older
            history = (Transition(run.state, run.created_unix_s, run.reason),)
            self.runs[run.id] = replace(run, history=history)
            return self.runs[run.id]

    def get_run(self, run_id: str) -> Run:
        self._up()
        matches = [run for key, run in self.runs.items() if key.startswith(run_id)]
        if len(matches) != 1:
            raise NotFoundError(f"no run {run_id}")
        return matches[0]

    def list_runs(self, *, limit: int, token: str = "") -> Page[Run]:
        return Page(tuple(reversed(self.runs.values()))[:limit])

    def open_runs(self) -> list[Run]:
        self._up()
        return [run for run in self.runs.values() if not is_final(run.state)]

    def update_run(self, run_id: str, **fields: Any) -> Run:
        self._up()
        with self._lock:
            changed = replace(self.runs[run_id], **fields, updated_unix_s=time.time())
            self.runs[run_id] = changed
            return changed

    def transition_run(
        self, run_id: str, *, expected: RunState, to: RunState, reason: str, **fields: Any
    ) -> Run:
        self._up()
        with self._lock:
            run = self.runs[run_id]
            if run.state is not expected:
                raise ConcurrentChangeError(f"run {run_id} is {run.state}")
            history = (*run.history, Transition(to, time.time(), reason))
            return self.update_run(run_id, state=to, reason=reason, history=history, **fields)

    def request_cancel(self, run_id: str, *, actor: str, reason: str) -> Run:
        if is_final(self.runs[run_id].state):
            raise StateError("over")
        return self.update_run(run_id, cancel_actor=actor, cancel_reason=reason)

    def add_curve_points(self, run_id: str, points: Sequence[CurvePoint]) -> Run:
        with self._lock:
            return self.update_run(run_id, curve=(*self.runs[run_id].curve, *points))

    def record_snapshot(self, run_id: str, pair_ids: Sequence[str], *, last_seq: int = 0) -> None:
        self.snapshots[run_id] = tuple(pair_ids)

    def record_solves(self, run_id: str, counts: Mapping[str, tuple[int, int]]) -> None:
        self._up()
        self.solves[run_id] = dict(counts)

    def solve_counts(self, pair_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        for counts in self.solves.values():
            for pair_id in counts.keys() & set(pair_ids):
                attempts, solved = found.get(pair_id, (0, 0))
                found[pair_id] = (attempts + counts[pair_id][0], solved + counts[pair_id][1])
        return found

    def acquire_pool(self, holder: str, *, ttl_s: float) -> PoolLease | None:
        with self._lock:
            now_s = time.time()
            lease = self.lease
            if lease and lease.holder != holder and lease.expires_unix_s > now_s:
                return None
            self.lease = PoolLease(holder, now_s, now_s + ttl_s)
            return self.lease

    def release_pool(self, holder: str) -> None:
        with self._lock:
            if self.lease and self.lease.holder == holder:
                self.lease = None

    def pool_lease(self) -> PoolLease | None:
        return self.lease

    def count_pairs(self) -> PairCounts:
        self._up()
        used = {pair_id for ids in self.snapshots.values() for pair_id in ids}
        new = [pair for pair in self.pairs if pair.input.id not in used]
        return PairCounts(len(self.pairs), 0, len(new))

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]:
        pairs = [pair for pair in self.pairs if source in ("", pair.input.source)]
        return pairs[-limit:] if limit else pairs

    def draw_pairs(
        self,
        run_id: str,
        policy: DrawPolicy,
        *,
        source: str = "",
        held_out: Callable[[Sequence[str]], set[str]],
    ) -> Draw:
        pairs = self.trainable_pairs(source=source)[-policy.max_pairs :]
        refused = held_out([pair.input.prompt for pair in pairs])
        kept = [pair for pair in pairs if pair.input.prompt not in refused]
        return Draw(tuple(kept), len(pairs), len(refused), last_seq=len(self.pairs))

    def get_adapter(self, name: str) -> Adapter:
        return self.adapters[name]

    def list_adapters(self) -> list[Adapter]:
        return list(self.adapters.values())

    def get_incumbent(self) -> Incumbent:
        return self.incumbent

    def set_adapter_state(self, name: str, state: AdapterState) -> None:
        self.adapters[name] = replace(self.adapters[name], state=state)

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> None:
        if report is not None:
            self.gates.append(report)
        self.set_adapter_state(name, AdapterState.REJECTED)
        run = self.runs[self.adapters[name].run_id]
        self.transition_run(run.id, expected=run.state, to=RunState.REJECTED, reason=reason)

    def add_audit(
        self, *, actor: str, action: str, subject: str, reason: str, detail_json: str = "{}"
    ) -> int:
        self._up()
        self.audit.append((actor, action, subject, reason))
        return len(self.audit)

    def save_gate(self, report: GateReport) -> None:
        self._up()
        self.gates.append(report)


@dataclass
class FakeIntake:
    """Stores what it is given; ``errors`` are raised first, one a call."""

    store: FakeStore
    errors: list[Exception] = field(default_factory=list)
    admitted: list[tuple[Path, str]] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)

    async def admit(self, run: Run, adapter_dir: Path, sha256: str) -> Adapter:
        if self.errors:
            raise self.errors.pop(0)
        self.admitted.append((adapter_dir, sha256))
        name = f"opsd-{run.id[:8]}"
        self.store.adapters.setdefault(
            name,
            Adapter(
                name=name,
                sha256=sha256,
                lora_id=1,
                state=AdapterState.CANDIDATE,
                run_id=run.id,
                path=str(adapter_dir),
                rank=4,
                alpha=8.0,
                size_bytes=1,
                model_fingerprint="f" * 64,
                created_unix_s=0.0,
            ),
        )
        return self.store.adapters[name]

    async def withdraw(self, name: str) -> None:
        self.withdrawn.append(name)


@dataclass
class FakeTrials:
    """Remembers what was loaded; ``errors`` are raised first."""

    errors: list[Exception] = field(default_factory=list)
    loaded: list[tuple[Path, str]] = field(default_factory=list)
    num_loaded: int = 0
    most_loaded: int = 0

    @asynccontextmanager
    async def on_trial(self, adapter_dir: Path, sha256: str) -> AsyncIterator[AdapterHandle]:
        if self.errors:
            raise self.errors.pop(0)
        assert (adapter_dir / "weights").is_file()
        self.loaded.append((adapter_dir, sha256))
        self.num_loaded += 1
        self.most_loaded = max(self.most_loaded, self.num_loaded)
        try:
            yield AdapterHandle(f"opsd-{sha256[:16]}", 99, str(adapter_dir))
        finally:
            self.num_loaded -= 1


def a_suite(name: str, role: SuiteRole) -> SuiteReport:
    return SuiteReport(
        name=name,
        role=role,
        n=2,
        incumbent_accuracy=0.25,
        candidate_accuracy=0.75,
        only_incumbent=0,
        only_candidate=1,
        difference=0.5,
        ci_low=0.0,
        ci_high=1.0,
        confidence=0.95,
        p_value=1.0,
        margin=0.02,
        verdict=GateVerdict.PASS,
        explanation="",
        incumbent_tokens_mean=4.0,
        candidate_tokens_mean=5.0,
        strata=(),
        num_errors=0,
        suite_sha256="ab",
    )


@dataclass
class FakeEvaluator:
    """Says ``verdict``; ``errors`` are raised first; with ``hold`` it waits for it."""

    verdict: GateVerdict = GateVerdict.PASS
    errors: list[Exception] = field(default_factory=list)
    hold: asyncio.Event | None = None
    calls: int = 0
    measured: list[str] = field(default_factory=list)
    measure_errors: list[Exception] = field(default_factory=list)
    hold_measure_of: int = -1  # the call of ``measure`` that waits for ``hold``
    incumbent: str = "base"

    def num_items(self) -> int:
        return 2

    def num_target_items(self) -> int:
        return 2

    async def measure(
        self, run: Run, adapter: AdapterHandle | None, on_progress: Callable[[int, int], None]
    ) -> list[Measurement]:
        if len(self.measured) == self.hold_measure_of and self.hold is not None:
            await self.hold.wait()
        if self.measure_errors:
            raise self.measure_errors.pop(0)
        self.measured.append(adapter.name if adapter else "base")
        on_progress(2, 2)
        return [Measurement("medium", 2, 0.5, 4.5)]

    async def evaluate(
        self, run: Run, candidate: Adapter, on_progress: Callable[[int, int], None]
    ) -> GateReport:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        on_progress(1, 4)
        if self.hold is not None:
            await self.hold.wait()
        on_progress(4, 4)
        return GateReport(
            run_id=run.id,
            candidate=candidate.name,
            incumbent=self.incumbent,
            verdict=self.verdict,
            explanation=f"{self.verdict}: as told",
            suites=(a_suite("medium", SuiteRole.TARGET), a_suite("easy", SuiteRole.GUARD)),
            started_unix_s=0.0,
            finished_unix_s=1.0,
        )


@dataclass
class FakeHeldOut:
    keys: set[str] = field(default_factory=set)

    def is_held_out(self, prompt: str) -> str | None:
        return "suite" if prompt_key(prompt) in self.keys else None


class Lab:
    """A controller over a fake store, fake trainers and a fake gate; restartable."""

    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.store = FakeStore()
        self.store.pairs = [make_pair(number) for number in range(40)]
        self.intake = FakeIntake(self.store)
        self.trials = FakeTrials()
        self.evaluator = FakeEvaluator()
        self.held_out = FakeHeldOut()
        self.canaries: Canaries | None = None
        self.timing = Timing(
            progress_s=0.01,
            watch_poll_s=0.05,
            retry_first_s=0.01,
            retry_longest_s=0.02,
            not_ready_limit_s=0.3,
            max_errors=3,
        )
        self.config = OpsdConfig.model_validate(
            {
                "state_dir": str(state_dir),
                "pool": {"device": "cpu", "num_devices": 1},
                "runs": {
                    "poll_interval_s": 0.01,
                    "kill_grace_s": 0.3,
                    "start_timeout_s": 20.0,
                    "stall_timeout_s": 20.0,
                },
                "training": {
                    "heartbeat_interval_s": 0.05,
                    "optim": {"num_steps": 3, "warmup_steps": 1},
                },
            }
        )
        self.controllers: list[RunController] = []
        self.launcher = TorchrunLauncher(
            nice=1,
            command=lambda r: [sys.executable, str(FAKE_TRAINER), str(r.run_dir / "run.json")],
        )

    def scenario(self, name: str) -> None:
        self.monkeypatch.setenv("OPSD_TRAINER_FAKE", name)

    def set_runs(self, **fields: object) -> None:
        runs = self.config.runs.model_copy(update=fields)
        self.config = self.config.model_copy(update={"runs": runs})

    def new_controller(self) -> RunController:
        controller = RunController(
            store=self.store,
            launcher=self.launcher,
            intake=self.intake,
            trials=self.trials,
            evaluator=self.evaluator,
            held_out=self.held_out,
            model=MODEL,
            config=self.config,
            timing=self.timing,
            canaries=self.canaries,
        )
        self.controllers.append(controller)
        return controller

    async def started(self) -> RunController:
        """A daemon's start; the one before has stopped, for two never share a store."""
        for controller in self.controllers:
            await controller.stop()
        controller = self.new_controller()
        await controller.start()
        return controller

    async def trigger(self, controller: RunController, **given: Any) -> Run:
        return await controller.trigger(
            TriggerKind.OPERATOR, actor="ada", reason="why not", **given
        )

    async def settled(self, controller: RunController, run: Run) -> Run:
        """The row once the run waits for a person or is over."""
        async with asyncio.timeout(20):
            async for row in controller.watch(run.id):
                run = row
        return run

    async def run(self, scenario: str = "ok", **given: Any) -> Run:
        """A run from trigger to decision."""
        self.scenario(scenario)
        controller = await self.started()
        return await self.settled(controller, await self.trigger(controller, **given))

    async def until(self, run: Run, holds: Callable[[Run], bool]) -> Run:
        async with asyncio.timeout(20):
            while not holds(self.store.get_run(run.id)):  # noqa: ASYNC110 - a file may be asked for
                await asyncio.sleep(0.01)
        return self.store.get_run(run.id)

    async def training(self, run: Run, launches: int = 1) -> Run:
        """The row once that launch's trainer is at work and known to be."""
        run = await self.until(run, lambda row: row.launches == launches)
        run_dir = Path(run.run_dir)
        await self.until(run, lambda _: (run_dir / "process.json").exists())
        events = run_dir / "events.jsonl"
        await self.until(run, lambda _: events.exists() and events.stat().st_size > 0)
        return run

    async def close(self) -> None:
        for controller in self.controllers:
            await controller.stop()
        for run in self.store.runs.values():
            if run.run_dir:
                await asyncio.to_thread(
                    self.launcher.terminate, run.id, Path(run.run_dir), grace_s=0.0
                )


@pytest.fixture
async def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    laboratory = Lab(tmp_path, monkeypatch)
    yield laboratory
    await laboratory.close()


@pytest.fixture
def request_for(tmp_path: Path) -> LaunchRequest:
    return LaunchRequest(
        run_id="11111111-2222-4333-8444-555555555555",
        run_dir=tmp_path,
        device="cpu",
        num_processes=1,
        threads_per_process=1,
    )
