"""TRAINING: one trainer, started or found again, watched until it is done."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from opsd.daemon.config.schema import RunsConfig
from opsd.daemon.errors import TrainerFailure, TrainerLost
from opsd.daemon.runs import metrics
from opsd.daemon.runs.events import EVENTS_NAME, EventReader, prepare_for_append
from opsd.daemon.runs.launcher import Launcher, LaunchRequest, TrainerExit, TrainerHandle
from opsd.daemon.runs.lost import how_lost
from opsd.daemon.runs.pool import Pool
from opsd.daemon.runs.ports import RunsStore
from opsd.daemon.runs.rates import read_rates
from opsd.daemon.runs.result import discard_result, has_result, outcome, read_result
from opsd.daemon.runs.rows import Rows
from opsd.daemon.runs.spec import read_spec
from opsd.daemon.types.runs import Run, RunState
from opsd.v1 import training_pb2

logger = logging.getLogger(__name__)

_MAX_STORED_INT: Final = (1 << 63) - 1
# A group whose rank is lost may take so long to end: the agent gives the others 30 s to comply.
_GROUP_END_S: Final = 60.0


@dataclass(slots=True)
class TrainerWatch:
    """What this daemon has seen of one trainer."""

    run_id: str
    run_dir: Path
    num_steps: int
    handle: TrainerHandle
    config: RunsConfig
    reader: EventReader
    last_sign_s: float = field(default_factory=time.monotonic)  # launch, adoption or event
    result_seen_s: float | None = None
    reported_s: float = float("-inf")
    step: int = 0
    metrics_json: str = ""
    generated_tokens: int = 0
    teacher_check_json: str = ""
    complaint: str = ""  # of the last "failed" event

    def look(self) -> training_pb2.RunResult | None:
        """Reads what is new; the result once the trainer is through, None while it works.

        Raises TrainerLost when it was killed, or lost a rank, and TrainerFailure when it failed,
        stalls, takes too long or writes garbage. Blocks.
        """
        # Asked before reading: whatever an ended trainer has written is there to be read.
        ended = self.handle.poll()
        while events := self.reader.read():
            for event in events:
                self._take(event)
        if self.reader.num_garbage:
            raise TrainerFailure(
                f"{EVENTS_NAME} holds {self.reader.num_garbage} lines that are not events, the "
                f"first {self.reader.first_garbage}"
            )
        if ended is not None and (how := how_lost(self.run_dir, ended)):
            raise TrainerLost(f"{how}, at step {self.step}")
        if has_result(self.run_dir):
            return self._result(ended is not None)
        if ended is not None:
            said = f"; its last words: {self.complaint}" if self.complaint else ""
            raise TrainerFailure(f"the trainer {ended} before it wrote its result{said}")
        self._check_clocks()
        return None

    def _result(self, ended: bool) -> training_pb2.RunResult | None:
        now_s = time.monotonic()
        if self.result_seen_s is None:
            self.result_seen_s = now_s
        patience_s = self.config.kill_grace_s
        if outcome(self.run_dir) != training_pb2.RUN_OUTCOME_SUCCEEDED:
            # Once the group has ended it is known whether this rank failed or was let down.
            patience_s = max(patience_s, _GROUP_END_S)
        lingers = now_s - self.result_seen_s > patience_s
        if not ended and not lingers:
            return None
        if not ended:
            logger.warning("trainer lingers after its result run=%s", self.run_id)
        return read_result(self.run_id, self.run_dir)

    def _take(self, event: training_pb2.TrainingEvent) -> None:
        self.last_sign_s = time.monotonic()
        if event.step > self.num_steps or event.metrics.generated_tokens > _MAX_STORED_INT:
            raise TrainerFailure(
                f"{EVENTS_NAME} tells of step {event.step} of {self.num_steps} and of "
                f"{event.metrics.generated_tokens} tokens: that is garbage"
            )
        self.step = event.step
        if event.kind == "failed":
            self.complaint = event.message
        if event.HasField("teacher_check"):
            self.teacher_check_json = to_json(event.teacher_check)
        # An export tells its tokens too; the last step's numbers are the run's.
        if event.kind == "step" and event.HasField("metrics"):
            self.metrics_json = to_json(event.metrics)
            self.generated_tokens = event.metrics.generated_tokens
            metrics.run_loss_nats.set(event.metrics.loss)
            if event.metrics.loss_implementation:
                metrics.loss_implementation_is(event.metrics.loss_implementation)

    def _check_clocks(self) -> None:
        silent_s = time.monotonic() - self.last_sign_s
        if self.reader.num_events == 0 and silent_s > self.config.start_timeout_s:
            metrics.kills_total.labels("start").inc()
            raise TrainerFailure(
                f"no event within runs.start_timeout_s = {self.config.start_timeout_s:g}: killed"
            )
        if self.reader.num_events > 0 and silent_s > self.config.stall_timeout_s:
            metrics.kills_total.labels("stall").inc()
            raise TrainerFailure(
                f"stalled at step {self.step}: no event for runs.stall_timeout_s = "
                f"{self.config.stall_timeout_s:g}: killed"
            )
        if time.time() - self.handle.launched_unix_s > self.config.max_wall_s:
            metrics.kills_total.labels("max_wall").inc()
            raise TrainerFailure(
                f"at step {self.step} after runs.max_wall_s = {self.config.max_wall_s:g}: killed"
            )


class TrainingStage:
    """Starts trainers, finds them again after a restart, and reports their progress."""

    def __init__(
        self,
        *,
        store: RunsStore,
        rows: Rows,
        pool: Pool,
        launcher: Launcher,
        config: RunsConfig,
        progress_s: float,
    ) -> None:
        self._store = store
        self._rows = rows
        self._pool = pool
        self._launcher = launcher
        self._config = config
        self._progress_s = progress_s
        self._watches: dict[str, TrainerWatch] = {}

    async def reconcile(self, run: Run) -> Run:
        """Moves a TRAINING run on; raises TrainerFailure for a run that has failed."""
        await self._pool.keep(run)
        watch = self._watches.get(run.id)
        if watch is None:
            return await self._begin(run)
        try:
            result = await asyncio.to_thread(watch.look)
        except TrainerLost as loss:
            run = await self._report(run, watch, at_once=True)
            return await self._restart(run, str(loss))
        except TrainerFailure:
            await self._report(run, watch, at_once=True)
            raise
        run = await self._report(run, watch)
        return run if result is None else await self._finish(run, result)

    async def end_trainer(self, run: Run) -> None:
        """Leaves no process of the run behind; raises TrainerFailure when one cannot be ended."""
        if run.run_dir:
            await asyncio.to_thread(
                self._launcher.terminate,
                run.id,
                Path(run.run_dir),
                grace_s=self._config.kill_grace_s,
            )
        self._watches.pop(run.id, None)

    async def _begin(self, run: Run) -> Run:
        run_dir = Path(run.run_dir)
        adopted = await asyncio.to_thread(self._launcher.adopt, run.id, run_dir)
        if adopted is not None:
            logger.info("trainer adopted run=%s", run.id)
            metrics.launches_total.labels("adopted").inc()
            self._watch(run, adopted)
            return run
        if run.launches == 0:
            return await self._launch(run)
        how = await asyncio.to_thread(how_lost, run_dir, TrainerExit(None))
        if how:
            return await self._restart(run, f"while the daemon was down, {how}")
        return await self._finish(run, await asyncio.to_thread(read_result, run.id, run_dir))

    async def _restart(self, run: Run, how: str) -> Run:
        """Another launch of a trainer that was lost; raises TrainerFailure after the last one."""
        if run.launches >= self._config.max_launches:
            raise TrainerFailure(
                f"{how}; the trainer has been started {run.launches} times (runs.max_launches): "
                "see to the cause, then trigger a new run"
            )
        logger.warning("trainer lost run=%s launches=%d how=%s", run.id, run.launches, how)
        reason = (
            f"{how}: started again from its checkpoint "
            f"(launch {run.launches + 1} of at most {self._config.max_launches})"
        )
        run = await self._rows.update(run, reason=reason)
        await self._rows.audit(action="run.restart", run=run, reason=reason)
        metrics.restarts_total.inc()
        return await self._launch(run)

    async def _launch(self, run: Run) -> Run:
        run_dir = Path(run.run_dir)
        # Ranks may have outlived their agent; two trainers in one directory would ruin it.
        await self.end_trainer(run)
        metrics.launches_total.labels("again" if run.launches else "first").inc()
        # Counted first: a daemon that dies in between must not launch for ever.
        run = await self._rows.update(run, launches=run.launches + 1)
        handle = await asyncio.to_thread(self._start, run, run_dir)
        self._watch(run, handle)
        return run

    def _start(self, run: Run, run_dir: Path) -> TrainerHandle:
        discard_result(run_dir)
        spec = read_spec(run.spec_json)
        request = LaunchRequest(
            run_id=run.id,
            run_dir=run_dir,
            device=spec.device,
            num_processes=spec.num_processes,
            threads_per_process=spec.threads_per_process,
        )
        return self._launcher.launch(request, events_offset=prepare_for_append(run_dir))

    def _watch(self, run: Run, handle: TrainerHandle) -> None:
        run_dir = Path(run.run_dir)
        self._watches[run.id] = TrainerWatch(
            run_id=run.id,
            run_dir=run_dir,
            num_steps=run.num_steps,
            handle=handle,
            config=self._config,
            reader=EventReader(run_dir / EVENTS_NAME, offset=handle.events_offset),
            step=run.step,
            metrics_json=run.metrics_json,
            generated_tokens=run.generated_tokens,
            teacher_check_json=run.teacher_check_json,
        )

    async def _report(self, run: Run, watch: TrainerWatch, *, at_once: bool = False) -> Run:
        if not at_once and time.monotonic() - watch.reported_s < self._progress_s:
            return run
        watch.reported_s = time.monotonic()
        metrics.run_step.set(watch.step)
        metrics.run_num_steps.set(watch.num_steps)
        _count_tokens(run, watch.generated_tokens)
        return await self._rows.update(
            run,
            step=watch.step,
            metrics_json=watch.metrics_json,
            generated_tokens=watch.generated_tokens,
            teacher_check_json=watch.teacher_check_json,
        )

    async def _finish(self, run: Run, result: training_pb2.RunResult) -> Run:
        await self.end_trainer(run)
        counts = await asyncio.to_thread(read_rates, Path(run.run_dir))
        if counts:
            await asyncio.to_thread(self._store.record_solves, run.id, counts)
        await self._pool.release(run)
        _count_tokens(run, result.generated_tokens)
        metrics.run_step.set(result.steps_done)
        return await self._rows.move(
            run,
            RunState.EVALUATING,
            f"trained {result.steps_done} steps in {result.wall_s:.1f} s",
            step=result.steps_done,
            metrics_json=to_json(result.last),
            generated_tokens=result.generated_tokens,
            teacher_check_json=(
                to_json(result.teacher_check)
                if result.HasField("teacher_check")
                else run.teacher_check_json
            ),
        )


def to_json(message: training_pb2.StepMetrics | training_pb2.TeacherCheckReport) -> str:
    """Canonical proto3 JSON with snake_case names, on one line."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)


def _count_tokens(run: Run, generated_tokens: int) -> None:
    metrics.generated_tokens_total.inc(max(0, generated_tokens - run.generated_tokens))
