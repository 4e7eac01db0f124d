"""EVALUATING: the adapter comes in, the gate judges it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from opsd.daemon.errors import (
    AdapterError,
    EngineError,
    NotReadyError,
    OpsdError,
    StoreError,
    TrainerFailure,
)
from opsd.daemon.runs.curve import CurveStage
from opsd.daemon.runs.ports import Evaluator, Intake, RunsStore
from opsd.daemon.runs.result import adapter_dir, read_result
from opsd.daemon.runs.rows import Rows
from opsd.daemon.runs.timing import Timing
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.daemon.types.runs import Run, RunState

logger = logging.getLogger(__name__)

GATE_ACTOR = "gate"
"""Who rejects a candidate that failed."""


@dataclass(slots=True)
class _Job:
    """An evaluation under way."""

    done: int = 0
    total: int = 0
    reported_s: float = float("-inf")
    task: asyncio.Task[GateReport] = field(init=False)

    def on_progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total


class EvaluationStage:
    """Evaluates each run in a task of its own, so that a long evaluation holds up nothing else."""

    def __init__(
        self,
        *,
        store: RunsStore,
        rows: Rows,
        intake: Intake,
        evaluator: Evaluator,
        curve: CurveStage,
        timing: Timing,
        wake: Callable[[], None],
        reject_fails: bool = True,
    ) -> None:
        """``reject_fails``: or else a candidate that failed waits for a person to reject it."""
        self._reject_fails = reject_fails
        self._store = store
        self._rows = rows
        self._intake = intake
        self._evaluator = evaluator
        self._curve = curve
        self._timing = timing
        self._wake = wake
        self._jobs: dict[str, _Job] = {}

    async def reconcile(self, run: Run) -> Run:
        """Moves an EVALUATING run on; raises TrainerFailure for one that has failed."""
        job = self._jobs.get(run.id) or self._start(run)
        run = await self._report(run, job)
        if not job.task.done():
            return run
        try:
            report = job.task.result()
        except BaseException:
            del self._jobs[run.id]
            raise
        # The job stays until its end is stored: a store that is down must not cost the report.
        run = await self._conclude(run, report)
        del self._jobs[run.id]
        return run

    async def stop(self, run_id: str) -> None:
        """Ends the run's evaluation, if one is under way; what it found out so far stays stored."""
        job = self._jobs.pop(run_id, None)
        if job is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)

    async def stop_all(self) -> None:
        for run_id in list(self._jobs):
            await self.stop(run_id)

    def _start(self, run: Run) -> _Job:
        job = _Job(done=run.eval_done, total=run.eval_total)
        job.task = asyncio.create_task(self._evaluate(run, job), name=f"evaluate {run.id}")
        job.task.add_done_callback(lambda _: self._wake())
        self._jobs[run.id] = job
        return job

    async def _evaluate(self, run: Run, job: _Job) -> GateReport:
        failures = 0
        pause_s = self._timing.retry_first_s
        give_up_s = time.monotonic() + self._timing.not_ready_limit_s
        while True:
            try:
                return await self._measure(run, job)
            except NotReadyError as error:
                if time.monotonic() > give_up_s:
                    raise TrainerFailure(f"evaluation failed: {error}") from error
                logger.info("evaluation waits run=%s reason=%s", run.id, error)
            except (EngineError, StoreError) as error:
                failures += 1
                if failures >= self._timing.engine_attempts:
                    raise TrainerFailure(
                        f"evaluation failed {failures} times, the last time: {error}"
                    ) from error
                logger.warning("evaluation is tried again run=%s error=%s", run.id, error)
            except TrainerFailure:
                raise
            except Exception as error:
                if not isinstance(error, OpsdError):
                    logger.exception("evaluation broke run=%s", run.id)
                raise TrainerFailure(f"evaluation failed: {str(error) or repr(error)}") from error
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, self._timing.retry_longest_s)

    async def _measure(self, run: Run, job: _Job) -> GateReport:
        """The exported adapters come first: the candidate is the last to be loaded, and stays."""
        run = await self._rows.get(run.id)
        num_before = self._curve.num_answers(run)
        num_answers = num_before + 2 * self._evaluator.num_items()
        await self._curve.measure_exports(run, lambda done, _: job.on_progress(done, num_answers))
        candidate = await self._admit(run)
        report = await self._evaluator.evaluate(
            run,
            candidate,
            lambda done, total: job.on_progress(num_before + done, num_before + total),
        )
        await self._curve.add_ends(run, report)
        return report

    async def _admit(self, run: Run) -> Adapter:
        run_dir = Path(run.run_dir)
        result = await asyncio.to_thread(read_result, run.id, run_dir)
        try:
            adapter = await self._intake.admit(
                run, adapter_dir(result, run_dir), result.adapter_sha256
            )
            if adapter.run_id != run.id:
                raise AdapterError(
                    f"{adapter.name} came out again, byte for byte the adapter of run "
                    f"{adapter.run_id} ({adapter.state}): add pairs or change the seed"
                )
        except AdapterError as error:
            raise TrainerFailure(f"the adapter is refused: {error}") from error
        await self._rows.update(run, candidate=adapter.name)
        return adapter

    async def _report(self, run: Run, job: _Job) -> Run:
        finished = job.task.done()
        if not finished and time.monotonic() - job.reported_s < self._timing.progress_s:
            return run
        job.reported_s = time.monotonic()
        return await self._rows.update(run, eval_done=job.done, eval_total=job.total)

    async def _conclude(self, run: Run, report: GateReport) -> Run:
        assert report.run_id == run.id, f"the gate judged {report.run_id} for {run.id}"
        reason = f"gate: {report.explanation}"  # which begins with the verdict
        logger.info("gate run=%s candidate=%s verdict=%s", run.id, report.candidate, report.verdict)
        is_rejected = report.verdict is GateVerdict.FAIL and self._reject_fails
        if not is_rejected and not run.measure_only:
            await asyncio.to_thread(self._store.save_gate, report)
            return await self._rows.move(run, RunState.AWAITING_APPROVAL, reason)
        if run.measure_only:
            reason = f"measured only; {reason}"
        # One transaction: with a report that passed, a candidate could be approved.
        await asyncio.to_thread(
            self._store.reject, report.candidate, actor=GATE_ACTOR, reason=reason, report=report
        )
        self._rows.notify(run.id)
        await self.withdraw(report.candidate)
        return await self._rows.get(run.id)

    async def withdraw(self, name: str) -> None:
        """Frees a candidate's slot in the engine; what goes wrong there is the engine's to mend."""
        try:
            await self._intake.withdraw(name)
        except OpsdError as error:
            logger.warning("candidate stays loaded adapter=%s error=%s", name, error)
