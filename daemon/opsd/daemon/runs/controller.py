"""Moves every run on, from its trigger to the moment a person has to decide.

``RunController.reconcile`` takes a run's row, does what its state asks for, and returns the row as
it is then. It may be called at any time, any number of times, by a daemon that has just started
too: all it needs is the row and the run's directory.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.errors import (
    AdapterError,
    ConcurrentChangeError,
    InvalidInputError,
    NotFoundError,
    StateError,
    StoreError,
    TrainerFailure,
)
from opsd.daemon.runs import metrics
from opsd.daemon.runs.curve import CurveStage
from opsd.daemon.runs.evaluation import EvaluationStage
from opsd.daemon.runs.files import read_tail, storable
from opsd.daemon.runs.launcher import LOG_NAME, Launcher
from opsd.daemon.runs.pool import Pool
from opsd.daemon.runs.ports import (
    Canaries,
    Evaluator,
    HeldOut,
    Intake,
    NoCanaries,
    RunsStore,
    Trials,
)
from opsd.daemon.runs.preparation import PreparationStage
from opsd.daemon.runs.rows import Rows, wait_briefly
from opsd.daemon.runs.shard import no_shard, require_same_source, too_few_pairs
from opsd.daemon.runs.spec import ModelFacts, SpecBuilder
from opsd.daemon.runs.states import CANCELLABLE_STATES, OPEN_STATES, is_final
from opsd.daemon.runs.timing import Timing
from opsd.daemon.runs.training import TrainingStage
from opsd.daemon.types.adapters import AdapterState
from opsd.daemon.types.pair_sets import DrawPolicy
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.v1 import training_pb2

logger = logging.getLogger(__name__)

_LOG_TAIL_BYTES: Final = 16 << 10
_MAX_REASON_CHARS: Final = 4000
_RUNS_DIR: Final = "runs"


class RunController:
    """The one task that drives runs, and what others may ask of it."""

    def __init__(
        self,
        *,
        store: RunsStore,
        launcher: Launcher,
        intake: Intake,
        trials: Trials,
        evaluator: Evaluator,
        held_out: HeldOut,
        model: ModelFacts,
        config: OpsdConfig,
        timing: Timing | None = None,
        support_address: str = "",
        canaries: Canaries | None = None,
    ) -> None:
        """``support_address``: where trainers reach the daemon; empty: they cannot."""
        timing = timing or Timing()
        self._store = store
        self._config = config.runs
        self._timing = timing
        self._rows = Rows(store)
        self._specs = SpecBuilder(
            config.training, config.pool, model, config.runs.stall_timeout_s, support_address
        )
        self._pool = Pool(store, ttl_s=config.pool.lease_ttl_s)
        self._preparation = PreparationStage(
            store=store,
            rows=self._rows,
            held_out=held_out,
            specs=self._specs,
            runs_dir=config.state_dir / _RUNS_DIR,
            min_pairs=config.runs.min_pairs,
            policy=DrawPolicy(
                max_pairs=config.runs.max_pairs,
                recency=config.runs.recency,
                max_submitter_share=config.collect.max_submitter_share,
                max_self_made_share=config.collect.max_self_made_share,
            ),
            canaries=canaries or NoCanaries(),
        )
        self._training = TrainingStage(
            store=store,
            rows=self._rows,
            pool=self._pool,
            launcher=launcher,
            config=config.runs,
            progress_s=timing.progress_s,
        )
        self._wake = asyncio.Event()
        self._evaluation = EvaluationStage(
            store=store,
            rows=self._rows,
            intake=intake,
            evaluator=evaluator,
            curve=CurveStage(store=store, rows=self._rows, trials=trials, evaluator=evaluator),
            timing=timing,
            wake=self._wake.set,
            reject_fails=config.promotion.auto_reject_fails,
        )
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._num_errors: Counter[str] = Counter()
        self._seen: dict[str, Run] = {}  # open runs, as of the last round
        self._task: asyncio.Task[None] | None = None

    # What others ask for

    async def start(self) -> None:
        """Picks up every open run and goes on with it; raises ConfigError for unusable settings."""
        assert self._task is None, "started twice"
        self._task = asyncio.create_task(self._drive(), name="runs")

    async def stop(self) -> None:
        """Stops moving runs on. A trainer at work is left at work: the next daemon adopts it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._evaluation.stop_all()

    async def trigger(
        self,
        kind: TriggerKind,
        *,
        actor: str,
        reason: str,
        overrides_json: str = "{}",
        source: str = "",
        request_id: str = "",
        same_data_as: str = "",
        measure_only: bool = False,
    ) -> Run:
        """Queues a run; a ``request_id`` seen before returns the run it made.

        ``same_data_as`` is the id of a run whose data this one is to train on, or a unique prefix;
        ``measure_only`` rejects the adapter once it is evaluated. Raises InvalidInputError for
        overrides that cannot be, NotFoundError for no such run, and StateError when an operator
        asks for a run on fewer than ``runs.min_pairs`` verified pairs or on data that is not there.
        """
        self._specs.resolve(overrides_json)
        if same_data_as:
            data_of = await self._data_of(same_data_as, source)
            same_data_as, source = data_of.id, data_of.source
        elif kind is TriggerKind.OPERATOR:
            await self._require_pairs(source)
        now_s = time.time()
        wanted = Run(
            id=str(uuid.uuid4()),
            state=RunState.QUEUED,
            trigger=kind,
            actor=actor,
            reason=reason or f"triggered by {kind}",
            created_unix_s=now_s,
            updated_unix_s=now_s,
            overrides_json=overrides_json or "{}",
            source=source,
            request_id=request_id,
            same_data_as=same_data_as,
            measure_only=measure_only,
        )
        run = await asyncio.to_thread(self._store.create_run, wanted)
        if run.id == wanted.id:
            metrics.triggers_total.labels(kind.value, "created").inc()
            logger.info("run queued run=%s trigger=%s actor=%s", run.id, kind, actor)
        self._wake.set()
        return run

    async def plan(
        self, *, overrides_json: str = "{}", source: str = "", same_data_as: str = ""
    ) -> training_pb2.RunSpec:
        """What an operator's trigger would train with; raises what it would, and queues nothing."""
        spec = await asyncio.to_thread(self._preparation.plan, overrides_json)
        if same_data_as:
            await self._data_of(same_data_as, source)
        else:
            await self._require_pairs(source)
        return spec

    async def cancel(self, run_id: str, *, actor: str, reason: str) -> Run:
        """Ends the run: its trainer is killed, its candidate rejected, the pool free.

        Raises NotFoundError, or StateError when the run is over or carries traffic as a canary.
        """
        run = await self._rows.get(run_id)
        _require_cancellable(run)
        run = await asyncio.to_thread(
            self._store.request_cancel,
            run.id,
            actor=actor,
            reason=reason.strip() or "no reason given",
        )
        run = await self.reconcile(run)
        if run.state is not RunState.CANCELLED:
            _require_cancellable(run)
        return run

    def watch(self, run_id: str) -> AsyncIterator[Run]:
        """The run now and whenever it changes, until it waits for a person or is over."""
        return self._watch(run_id)

    async def _watch(self, run_id: str) -> AsyncIterator[Run]:
        run = await self._rows.get(run_id)
        async for changed in self._rows.watch(run.id, poll_s=self._timing.watch_poll_s):
            yield changed

    # Driving

    async def _drive(self) -> None:
        swept = False
        while True:
            self._wake.clear()
            try:
                if not swept:
                    await self._reject_orphans()
                    swept = True
                await self._round()
            except StoreError as error:
                logger.warning("runs wait for the store error=%s", error)
            except Exception:
                metrics.reconcile_errors_total.inc()
                logger.exception("runs could not be listed")
            await wait_briefly(self._wake, self._config.poll_interval_s)

    async def _round(self) -> None:
        open_runs = await asyncio.to_thread(self._store.open_runs)
        await self._observe({run.id: run for run in open_runs})
        for run in open_runs:
            await self.reconcile(run)

    async def _observe(self, open_runs: dict[str, Run]) -> None:
        """Tells watchers of what others have changed, and counts runs that are over."""
        for run_id, run in open_runs.items():
            before = self._seen.get(run_id)
            if before is None or before.updated_unix_s != run.updated_unix_s:
                self._rows.notify(run_id)
        for run_id in self._seen.keys() - open_runs.keys():
            over = await self._rows.get(run_id)
            metrics.runs_total.labels(over.state.value).inc()
            self._rows.notify(run_id)
            self._locks.pop(run_id, None)
            self._num_errors.pop(run_id, None)
        self._seen = open_runs
        states = Counter(run.state for run in open_runs.values())
        for state in OPEN_STATES:
            metrics.run_state.labels(state.value).set(states[state])

    async def reconcile(self, run: Run) -> Run:
        """Does what the run's state asks for ; a run's failure is no exception."""
        async with self._locks[run.id]:
            try:
                run = await self._rows.get(run.id)
                run = await self._advance(run)
            except (StoreError, ConcurrentChangeError) as error:
                logger.warning("run is looked at again run=%s error=%s", run.id, error)
            except (TrainerFailure, AdapterError, InvalidInputError) as error:
                return await self._fail(run, str(error))
            except Exception as error:
                return await self._unexpected(run, error)
            else:
                self._num_errors.pop(run.id, None)
            return run

    async def _advance(self, run: Run) -> Run:
        if run.cancel_reason and run.state in CANCELLABLE_STATES:
            return await self._finish_cancel(run)
        match run.state:
            case RunState.QUEUED:
                return await self._dequeue(run)
            case RunState.PREPARING:
                await self._pool.keep(run)
                return await self._preparation.reconcile(run)
            case RunState.TRAINING:
                return await self._training.reconcile(run)
            case RunState.EVALUATING:
                return await self._evaluation.reconcile(run)
            case _:  # a person's turn, or over
                return run

    async def _dequeue(self, run: Run) -> Run:
        waits = await self._pool.try_lease(run)
        if waits:
            return await self._rows.update(run, reason=waits)
        return await self._rows.move(run, RunState.PREPARING, "has the pool")

    # Ends

    async def _finish_cancel(self, run: Run) -> Run:
        await self._clear_away(run)
        run = await self._rows.move(
            run, RunState.CANCELLED, f"cancelled by {run.cancel_actor}: {run.cancel_reason}"
        )
        logger.info("run cancelled run=%s actor=%s", run.id, run.cancel_actor)
        await self._reject_candidates({run.id})
        return run

    async def _fail(self, run: Run, reason: str) -> Run:
        """FAILED with its reason; the row stays for another try when that cannot be done yet."""
        reason = storable(reason)[:_MAX_REASON_CHARS]
        try:
            try:
                await self._clear_away(run)
            except TrainerFailure as error:
                self._num_errors[run.id] += 1
                logger.error("run=%s %s", run.id, error)
                if self._num_errors[run.id] < self._timing.max_errors:
                    return run
                reason = f"{reason}; moreover, {error}"
            tail = await asyncio.to_thread(_log_tail, run)
            run = await self._rows.move(run, RunState.FAILED, reason, error=reason, log_tail=tail)
            logger.error("run failed run=%s reason=%s", run.id, reason)
            await self._reject_candidates({run.id})
        except (StoreError, ConcurrentChangeError) as error:
            logger.warning("run is looked at again run=%s error=%s", run.id, error)
        return run

    async def _unexpected(self, run: Run, error: Exception) -> Run:
        metrics.reconcile_errors_total.inc()
        self._num_errors[run.id] += 1
        logger.error("run=%s state=%s error=%r", run.id, run.state, error, exc_info=error)
        if self._num_errors[run.id] < self._timing.max_errors or is_final(run.state):
            return run
        count = self._num_errors[run.id]
        return await self._fail(
            run, f"{count} errors in a row while {run.state}, the last: {error!r}"
        )

    async def _clear_away(self, run: Run) -> None:
        """Nothing of the run is at work any more, and the pool is free."""
        await self._evaluation.stop(run.id)
        await self._training.end_trainer(run)
        await self._pool.release(run)

    async def _reject_candidates(self, run_ids: set[str]) -> None:
        """Adapters of runs that ended without a decision will not be decided on."""
        for adapter in await asyncio.to_thread(self._store.list_adapters):
            if adapter.run_id in run_ids and adapter.state is AdapterState.CANDIDATE:
                await asyncio.to_thread(
                    self._store.set_adapter_state, adapter.name, AdapterState.REJECTED
                )
                await self._evaluation.withdraw(adapter.name)

    async def _reject_orphans(self) -> None:
        """Does what a daemon that was killed between two writes left undone."""
        adapters = await asyncio.to_thread(self._store.list_adapters)
        over = {RunState.FAILED, RunState.CANCELLED, RunState.REJECTED}
        ended = set()
        for run_id in {a.run_id for a in adapters if a.state is AdapterState.CANDIDATE}:
            try:
                run = await self._rows.get(run_id)
            except NotFoundError:
                # Put there by hand, perhaps. Other runs must not wait for it.
                logger.warning("a candidate's run is not known run=%s", run_id)
                continue
            if run.state in over:
                ended.add(run.id)
        await self._reject_candidates(ended)

    async def _data_of(self, run_id: str, source: str) -> Run:
        """The run whose data is asked for; it may have yet to write its shard."""
        run = await self._rows.get(run_id)
        if source:
            require_same_source(source, run)
        if is_final(run.state) and not run.spec_json:
            raise StateError(no_shard(run))
        return run

    async def _require_pairs(self, source: str) -> None:
        need = self._config.min_pairs
        pairs = await asyncio.to_thread(self._store.trainable_pairs, source=source, limit=need)
        if len(pairs) < need:
            raise StateError(too_few_pairs(len(pairs), need, source))


def _require_cancellable(run: Run) -> None:
    if run.state is RunState.CANARY:
        raise StateError(f"run {run.id} carries traffic as a canary: roll it back instead")
    if run.state not in CANCELLABLE_STATES:
        raise StateError(f"run {run.id} is {run.state} already: there is nothing to cancel")


def _log_tail(run: Run) -> str:
    return read_tail(Path(run.run_dir) / LOG_NAME, _LOG_TAIL_BYTES) if run.run_dir else ""
