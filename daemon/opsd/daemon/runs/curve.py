"""A run's learning curve: the adapters that its trainer exported on the way, one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from opsd.daemon.errors import AdapterError, TrainerFailure
from opsd.daemon.runs.events import EVENTS_NAME, EventReader
from opsd.daemon.runs.ports import Evaluator, RunsStore, Trials
from opsd.daemon.runs.result import read_result
from opsd.daemon.runs.rows import Rows
from opsd.daemon.runs.spec import read_spec
from opsd.daemon.types.engine import BASE
from opsd.daemon.types.gate import GateReport, Measurement, SuiteReport, SuiteRole
from opsd.daemon.types.runs import CurvePoint, Run
from opsd.v1 import training_pb2

logger = logging.getLogger(__name__)

EXPORTS_NAME: Final = "adapters"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Moment:
    """How far training was."""

    step: int
    generated_tokens: int
    train_s: float


@dataclass(frozen=True, slots=True)
class Export:
    """An adapter that the trainer wrote on the way, as its event told."""

    moment: Moment
    sha256: str


@dataclass(slots=True)
class History:
    """What ``events.jsonl`` tells of exports and time."""

    exports: dict[int, Export] = field(default_factory=dict)  # by step; the last event of a step
    began_s: float = 0.0  # of the first step: the model is loaded, the teacher checked
    train_s: float = 0.0
    _last_unix_s: float = float("inf")

    def take(self, events: Iterable[training_pb2.TrainingEvent]) -> None:
        """Adds events in their order. Time runs from "started" to the trainer's last event; of a
        trainer that was started again, the pause in between does not count."""
        for event in events:
            if event.kind != "started":
                self.train_s += max(0.0, event.time_unix_s - self._last_unix_s)
            self._last_unix_s = event.time_unix_s
            if event.kind == "step" and event.step == 1:
                self.began_s = max(0.0, self.train_s - event.metrics.step_s)
            if event.kind == "export":
                moment = Moment(event.step, event.metrics.generated_tokens, self.train_s)
                self.exports[event.step] = Export(moment, event.message)


def read_history(run_dir: Path) -> History:
    """Blocks."""
    history = History()
    reader = EventReader(run_dir / EVENTS_NAME)
    while events := reader.read():
        history.take(events)
    return history


def export_dir(run_dir: Path, step: int) -> Path:
    """Where the trainer writes the adapter after ``step``; TrainerFailure when a link leads it out
    of ``run_dir``."""
    path = (run_dir / EXPORTS_NAME / f"step-{step:08d}").resolve()
    if not path.is_relative_to(run_dir.resolve()):
        raise TrainerFailure(f"the adapter of step {step} lies outside the run's {run_dir}")
    return path


class CurveStage:
    """Adds points to the curves of runs that have ``export_every_steps``."""

    def __init__(
        self, *, store: RunsStore, rows: Rows, trials: Trials, evaluator: Evaluator
    ) -> None:
        self._store = store
        self._rows = rows
        self._trials = trials
        self._evaluator = evaluator

    def num_answers(self, run: Run) -> int:
        """How many answers the points of ``measure_exports`` take."""
        return len(_due_steps(run)) * self._evaluator.num_target_items()

    async def measure_exports(self, run: Run, on_progress: Progress) -> None:
        """One point for every exported adapter and target suite; those that the run has already
        are passed over.

        ``on_progress(done, total)`` counts answers. Raises TrainerFailure for an adapter that is
        missing or refused, and what the evaluator raises.
        """
        steps = _due_steps(run)
        if not steps:
            return
        run_dir = Path(run.run_dir)
        history = await asyncio.to_thread(read_history, run_dir)
        missing = [step for step in steps if step not in history.exports]
        if missing:
            raise TrainerFailure(
                f"{run_dir / EVENTS_NAME} tells of no adapter exported after step {missing[0]}, "
                "although export_every_steps asks for it"
            )
        total = self.num_answers(run)
        known = {point.step for point in run.curve}
        for position, step in enumerate(steps):
            before = position * self._evaluator.num_target_items()
            on_progress(before, total)
            if step not in known:
                await self._measure_export(
                    run,
                    history.exports[step],
                    _shifted(on_progress, before, total),
                )
        on_progress(total, total)

    async def add_ends(self, run: Run, report: GateReport) -> None:
        """The points before the first step and after the last, which the gate has measured.

        Without the first where training went on from an adapter that has left since.
        """
        spec = read_spec(run.spec_json)
        if not spec.export_every_steps:
            return
        run_dir = Path(run.run_dir)
        result = await asyncio.to_thread(read_result, run.id, run_dir)
        history = await asyncio.to_thread(read_history, run_dir)
        first = Moment(0, 0, history.began_s)
        last = Moment(result.steps_done, result.generated_tokens, history.train_s)
        started_from = run.incumbent_at_start if spec.initial_adapter_path else BASE
        # A sealed suite's report has no numbers.
        targets = [s for s in report.suites if s.role is SuiteRole.TARGET and not s.sealed and s.n]
        if started_from == report.incumbent:
            await self._add(run, first, map(_of_incumbent, targets))
        elif started_from == BASE:
            found = await self._evaluator.measure(run, None, lambda done, total: None)
            await self._add(run, first, found)
        else:
            logger.info("curve without its start run=%s started_from=%s", run.id, started_from)
        await self._add(run, last, map(_of_candidate, targets))

    async def _measure_export(self, run: Run, export: Export, on_progress: Progress) -> None:
        step = export.moment.step
        directory = export_dir(Path(run.run_dir), step)
        try:
            async with self._trials.on_trial(directory, export.sha256) as handle:
                found = await self._evaluator.measure(run, handle, on_progress)
        except AdapterError as error:
            raise TrainerFailure(f"the adapter of step {step} is refused: {error}") from error
        await self._add(run, export.moment, found)
        logger.info("curve point run=%s step=%d", run.id, step)

    async def _add(self, run: Run, moment: Moment, found: Iterable[Measurement]) -> None:
        points = [
            CurvePoint(
                step=moment.step,
                generated_tokens=moment.generated_tokens,
                train_s=moment.train_s,
                suite=one.suite,
                n=one.n,
                accuracy=one.accuracy,
                tokens_mean=one.tokens_mean,
            )
            for one in found
        ]
        await asyncio.to_thread(self._store.add_curve_points, run.id, points)
        self._rows.notify(run.id)


def _shifted(on_progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: on_progress(before + done, total)


def _due_steps(run: Run) -> range:
    """After which an adapter is exported: every so many steps, but the last has its own."""
    spec = read_spec(run.spec_json)
    every = spec.export_every_steps
    return range(every, spec.optim.num_steps, every) if every else range(0)


def _of_incumbent(suite: SuiteReport) -> Measurement:
    return Measurement(suite.name, suite.n, suite.incumbent_accuracy, suite.incumbent_tokens_mean)


def _of_candidate(suite: SuiteReport) -> Measurement:
    return Measurement(suite.name, suite.n, suite.candidate_accuracy, suite.candidate_tokens_mean)
