"""RunSupportService of support.proto."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc

from opsd.daemon.errors import (
    ConcurrentChangeError,
    EngineError,
    NotFoundError,
    NotReadyError,
    OpsdError,
    StateError,
    StoreError,
)
from opsd.daemon.support import metrics
from opsd.daemon.support.admission import Admission
from opsd.daemon.support.checks import check_sample, check_verify
from opsd.daemon.support.ports import Readiness, RunRows
from opsd.daemon.support.sampling import AttemptSampler, SampleJob
from opsd.daemon.support.students import Student, Students
from opsd.daemon.types.engine import BASE, AdapterHandle, Engine, FinishReason
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState
from opsd.daemon.verify.pool import VerifierPool
from opsd.v1 import support_pb2 as pb
from opsd.v1 import support_pb2_grpc as pb_grpc

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
T = TypeVar("T")

_OVER_POLL_S = 1.0


@dataclass(eq=False, slots=True)
class _Call:
    """A SampleAttempts under way."""

    run_id: str
    adapter: str
    work: asyncio.Task[None] | None = None
    error: OpsdError | None = None  # why the daemon ended it


class RunSupportService(pb_grpc.RunSupportServiceServicer):
    """Raises the errors of ``opsd.daemon.errors``; an interceptor makes statuses of them."""

    def __init__(
        self,
        *,
        runs: RunRows,
        verifiers: VerifierPool,
        engine: Engine,
        readiness: Readiness,
        students: Students,
        admission: Admission,
        over_poll_s: float = _OVER_POLL_S,
    ) -> None:
        """``over_poll_s``: how often it is looked whether a run is over."""
        self._runs = runs
        self._verifiers = verifiers
        self._engine = engine
        self._readiness = readiness
        self._students = students
        self._admission = admission
        self._sampler = AttemptSampler(engine, admission, readiness)
        self._over_poll_s = over_poll_s
        self._calls: set[_Call] = set()
        self._background: set[asyncio.Task[Any]] = set()
        self._watch: asyncio.Task[None] | None = None

    # The daemon's side

    def start(self) -> None:
        """Before the first call."""
        self._students.clear_leftovers()
        self._watch = asyncio.create_task(self._watch_ends(), name="run-support-ends")

    async def stop(self) -> None:
        """Ends every sampling; the engine is left as it is."""
        tasks = [self._watch] if self._watch is not None else []
        tasks += list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._end_calls(list(self._calls), NotReadyError("the daemon is stopping"))
        await self._admission.stop()
        self._students.clear_leftovers()

    async def interrupt(self, adapter: str) -> None:
        """Serving needs the student's slot: ends its sampling, nobody can name it from now on."""
        calls = [call for call in self._calls if call.adapter == adapter]
        self._students.forget(adapter)
        await self._end_calls(
            calls,
            ConcurrentChangeError(
                f"{adapter} was unloaded for an adapter that serves: call LoadStudent again"
            ),
        )

    # The run's side

    async def VerifyAttempts(
        self, request: pb.VerifyAttemptsRequest, context: Context
    ) -> pb.VerifyAttemptsResponse:
        await self._training_run(request.run_id)
        check_verify(request, self._verifiers.known_verifiers)
        verdicts = await self._verify(request)
        for verdict in verdicts:
            metrics.VERIFIED.labels(verdict.kind.value).inc()
        return pb.VerifyAttemptsResponse(
            verdicts=[
                pb.AttemptVerdict(
                    passed=verdict.kind is VerdictKind.PASS,
                    failed_to_verify=verdict.kind is VerdictKind.ERROR,
                    evidence=verdict.evidence,
                )
                for verdict in verdicts
            ]
        )

    async def LoadStudent(
        self, request: pb.LoadStudentRequest, context: Context
    ) -> pb.LoadStudentResponse:
        run = await self._training_run(request.run_id)
        self._readiness.require_ready()
        started = time.monotonic()
        try:
            # A caller that goes away must not leave the engine with half a student.
            student = await self._to_its_end(
                self._students.load(run, Path(request.path), request.sha256)
            )
        except OpsdError as error:
            metrics.STUDENT_LOADS.labels(error.code).inc()
            raise
        load_s = time.monotonic() - started
        metrics.STUDENT_LOADS.labels("OK").inc()
        metrics.STUDENT_LOAD_SECONDS.inc(load_s)
        return pb.LoadStudentResponse(adapter=student.handle.name, load_s=load_s)

    async def SampleAttempts(  # type: ignore[override]  # the reader-writer form is not in the stub
        self, request: pb.SampleAttemptsRequest, context: Context
    ) -> None:
        run = await self._training_run(request.run_id)
        self._readiness.require_ready()
        student = None
        if request.adapter != BASE:
            student = self._students.find(run.id, request.adapter)
        with self._in_use(student) as handle:
            job = check_sample(request, handle, self._engine.info)
            call = _Call(run.id, request.adapter)
            call.work = asyncio.create_task(self._pump(job, request.adapter, context))
            self._calls.add(call)
            try:
                await asyncio.wait({call.work})
            finally:
                self._calls.discard(call)
                call.work.cancel()
                await asyncio.gather(call.work, return_exceptions=True)
            if call.work.cancelled():
                raise call.error or EngineError("the engine ended the sampling")
            call.work.result()

    async def ReleaseStudent(
        self, request: pb.ReleaseStudentRequest, context: Context
    ) -> pb.ReleaseStudentResponse:
        run = await self._run(request.run_id)
        await self._to_its_end(self._release(run.id, "the run released its student"))
        return pb.ReleaseStudentResponse()

    async def _pump(self, job: SampleJob, adapter: str, context: Context) -> None:
        async with aclosing(self._sampler.sample(job)) as samples:  # type: ignore[type-var]
            async for sample in samples:
                await context.write(
                    pb.SampledAttempt(
                        index=sample.index,
                        token_ids=sample.token_ids,
                        logprobs=sample.logprobs,
                        truncated=sample.finish is FinishReason.LENGTH,
                        adapter=adapter,
                    )
                )

    @contextmanager
    def _in_use(self, student: Student | None) -> Iterator[AdapterHandle | None]:
        if student is None:
            yield None
            return
        with self._students.use(student) as handle:
            yield handle

    async def _verify(self, request: pb.VerifyAttemptsRequest) -> list[Verdict]:
        attempts = [(a.verifier, a.reference, a.text) for a in request.attempts]
        try:
            return await self._verifiers.verify_many(attempts)
        except ExceptionGroup as group:
            # One refusal (stopped, overloaded) stands for all.
            raise group.exceptions[0] from None

    async def _run(self, run_id: str) -> Run:
        run = await asyncio.to_thread(self._runs.get_run, run_id)
        if run.id != run_id:  # the store also finds unique prefixes
            raise NotFoundError(f"run_id: there is no run {run_id[:80]!r}")
        return run

    async def _training_run(self, run_id: str) -> Run:
        run = await self._run(run_id)
        if run.state is not RunState.TRAINING:
            raise StateError(f"run {run.id} is {run.state}: only a run that trains is supported")
        return run

    # Ends

    async def _watch_ends(self) -> None:
        while True:
            await asyncio.sleep(self._over_poll_s)
            for run_id in {*self._students.runs(), *(call.run_id for call in self._calls)}:
                try:
                    run = await self._run(run_id)
                except NotFoundError:
                    await self._release(run_id, "there is no such run any more")
                except StoreError as error:
                    log.warning("run not looked at run=%s error=%s", run_id, error)
                else:
                    if run.state is not RunState.TRAINING:
                        await self._release(run_id, f"the run is {run.state}")

    async def _release(self, run_id: str, reason: str) -> None:
        calls = [call for call in self._calls if call.run_id == run_id]
        await self._end_calls(calls, StateError(f"sampling was ended: {reason}"))
        await self._students.release(run_id)

    async def _end_calls(self, calls: list[_Call], error: OpsdError) -> None:
        for call in calls:
            call.error = error
            if call.work is not None:
                call.work.cancel()
        works = [call.work for call in calls if call.work is not None]
        if works:
            await asyncio.wait(works)

    async def _to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # Looked at, so that nobody is told of an exception that was never retrieved.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
