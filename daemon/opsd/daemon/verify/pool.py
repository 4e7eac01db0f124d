"""Every verifier behind one call: processes that are killed and replaced, sandboxes, services."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client import Counter, Histogram

from opsd.daemon.config.verify import VerifyConfig
from opsd.daemon.errors import NotReadyError, OverloadedError
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.verify.extract import NO_ANSWER
from opsd.daemon.verify.process import WorkerDiedError, WorkerProcess
from opsd.daemon.verify.protocol import EVIDENCE_CHARS, Finding, Runner
from opsd.daemon.verify.registry import Registry, build_registry

log = logging.getLogger(__name__)

MAX_TEXT_CHARS = 1 << 20
"""A longer text or reference is not looked at; its verdict is error."""
MEMORY_MIB = 2048
STUCK_S = 3.0
"""So long after its limit a worker that gives no answer is killed."""
GRACE_S = 5.0
"""A sandbox or a service ends itself at its limit; so long after it, it is given up."""

_NOT_RUNNING = "the verifiers are not running: the daemon is starting or stopping"

VERIFY_DURATION = Histogram(
    "opsd_verify_duration_seconds",
    "Time of one verification in its process, without waiting for one.",
    ["verifier"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
VERDICTS = Counter("opsd_verdicts_total", "Verifications by outcome.", ["verifier", "kind"])
KILLS = Counter(
    "opsd_verifier_kills_total", "Verifier processes lost in the middle of their work.", ["reason"]
)


class VerifierPool:
    """Verifies in ``processes`` processes, each request for at most ``timeout_s`` seconds.

    Verifiers that run programs or ask others have their own limits (``registry``; without one, the
    built-in ones with their defaults) and their own queues: nobody waits for another verifier's
    work. A request waits for its turn; when ``max_waiting`` of a queue already do, it is refused
    with OverloadedError. A process that takes too long is killed and one that dies is replaced, and
    that request's verdict is error, with the reason. To be started and used on one event loop.
    """

    def __init__(
        self,
        processes: int,
        timeout_s: float,
        *,
        registry: Registry | None = None,
        max_waiting: int = 4096,
        memory_mib: int = MEMORY_MIB,
    ) -> None:
        self.timeout_s = timeout_s
        self._registry = registry or build_registry(VerifyConfig())
        self._workers = [
            WorkerProcess(
                memory_mib=memory_mib, timeout_s=timeout_s, plugins=self._registry.plugins
            )
            for _ in range(processes)
        ]
        self._max_waiting = max_waiting
        self._waiting = 0
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._lanes = {
            name: _Lane(runner, max_waiting) for name, runner in self._registry.runners.items()
        }
        self._tasks: set[asyncio.Task[Any]] = set()
        self._running = False

    @property
    def known_verifiers(self) -> tuple[str, ...]:
        """The names that a problem may ask for."""
        return self._registry.names

    @property
    def num_processes(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Returns when every process is warm; raises NotReadyError."""
        try:
            await asyncio.gather(*(worker.start() for worker in self._workers))
        except BaseException:
            await asyncio.gather(*(worker.stop() for worker in self._workers))
            raise
        for worker in self._workers:
            self._idle.put_nowait(worker)
        self._running = True

    async def stop(self) -> None:
        """Kills the processes; requests under way end with NotReadyError."""
        self._running = False
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))
        await asyncio.gather(*(lane.runner.close() for lane in self._lanes.values()))

    async def check_reference(self, verifier: str, reference: str) -> str:
        """What is wrong with a problem's reference, and how to mend it; "" where nothing is.

        Raises OverloadedError and NotReadyError as ``verify`` does.
        """
        if verifier not in self.known_verifiers:
            return f"no such verifier; there are {', '.join(self.known_verifiers)}"
        problem = self._registry.problem(verifier)
        if problem or not self._registry.checks_reference(verifier):
            return problem
        answer = await self._in_worker({"verifier": verifier, "reference": reference})
        return str(answer["mistake"]) if "mistake" in answer else f"it {answer['evidence']}"

    async def verify(
        self, verifier: str, reference: str, text: str | None, *, private: bool = False
    ) -> Verdict:
        """Whether ``text`` gives the answer ``reference``; no text, however hostile, raises.

        A ``private`` verdict is not counted by its kind, so that metrics do not tell it.
        Raises OverloadedError, or NotReadyError when the pool is stopped or cannot start a process:
        these say nothing about the text.
        """
        refusal = self._refusal(verifier, reference, text)
        if refusal is not None or text is None:
            nothing = Verdict(VerdictKind.FAIL, verifier, "no answer: no text", answered=False)
            return self._counted(refusal or nothing, private)
        lane = self._lanes.get(verifier)
        if lane is not None:
            return self._counted(await self._in_lane(lane, reference, text), private)
        request = {"verifier": verifier, "reference": reference, "text": text}
        answer = await self._in_worker(request)
        kind, evidence = VerdictKind(answer["kind"]), answer["evidence"]
        return self._counted(_verdict(kind, verifier, evidence, answer["duration_s"]), private)

    async def _in_lane(self, lane: _Lane, reference: str, text: str) -> Verdict:
        if not self._running:
            raise NotReadyError(_NOT_RUNNING)
        work = asyncio.create_task(lane.run(reference, text))
        self._keep(work)
        try:
            return await work
        except asyncio.CancelledError:
            if not self._running:
                raise NotReadyError("the verifiers were stopped") from None
            raise

    async def _in_worker(self, request: dict[str, str]) -> dict[str, Any]:
        """The worker's answer, or one of kind error; with the ``duration_s`` it took."""
        if not self._running:
            raise NotReadyError(_NOT_RUNNING)
        if self._waiting >= self._max_waiting:
            raise OverloadedError(f"{self._waiting} verifications wait already: send more slowly")
        # A caller that gives up must not leave a process with half a conversation, nor cost one.
        work = asyncio.create_task(self._ask_one(request))
        self._keep(work)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if work.cancelled():
                raise NotReadyError("the verifiers were stopped") from None
            raise

    async def verify_many(self, requests: Iterable[tuple[str, str, str | None]]) -> list[Verdict]:
        """Verdicts of (verifier, reference, text), in their order; holds no more of each queue than
        keeps it busy."""
        given = list(requests)
        queues: dict[str, list[int]] = {}
        for number, (verifier, _, _) in enumerate(given):
            queues.setdefault(verifier if verifier in self._lanes else "", []).append(number)
        verdicts: dict[int, Verdict] = {}

        async def work(numbers: Iterator[int]) -> None:
            for number in numbers:
                verdicts[number] = await self.verify(*given[number])

        async with asyncio.TaskGroup() as group:
            for name, queue in queues.items():
                numbers = iter(queue)
                lane = self._lanes.get(name)
                at_once = lane.runner.concurrency if lane is not None else self.num_processes
                for _ in range(at_once + 1):
                    group.create_task(work(numbers))
        return [verdicts[number] for number in range(len(verdicts))]

    async def _ask_one(self, request: dict[str, str]) -> dict[str, Any]:
        self._waiting += 1
        try:
            worker = await self._idle.get()
        finally:
            self._waiting -= 1
        try:
            if not worker.alive:
                # It died while idle (the kernel's out-of-memory killer, say): not this text's
                # doing.
                await worker.stop()
                await worker.start()
            return await self._ask(worker, request)
        finally:
            self._keep(asyncio.create_task(self._give_back(worker)))

    async def _ask(self, worker: WorkerProcess, request: dict[str, str]) -> dict[str, Any]:
        began = time.monotonic()
        try:
            # It keeps the limit itself; a worker that cannot even do that is replaced whole.
            async with asyncio.timeout(self.timeout_s + STUCK_S):
                answer = await worker.ask(request)
            if "lost" in answer:
                KILLS.labels(answer["lost"]).inc()
                log.warning("event=verifier_lost reason=%s pid=%s", answer["lost"], worker.pid)
        except TimeoutError:
            await self._lost(worker, "timeout")
            answer = _error(f"took longer than {self.timeout_s:g} s and was killed")
        except WorkerDiedError as error:
            await self._lost(worker, "crash")
            answer = _error(f"the verifier process died of it ({error})")
        except asyncio.CancelledError:
            await worker.stop()
            raise
        return answer | {"duration_s": time.monotonic() - began}

    async def _lost(self, worker: WorkerProcess, reason: str) -> None:
        KILLS.labels(reason).inc()
        log.warning("event=verifier_lost reason=%s pid=%s", reason, worker.pid)
        await worker.stop()

    async def _give_back(self, worker: WorkerProcess) -> None:
        """Replaces a lost process before anybody waits for it."""
        try:
            # If this fails, the next request that gets this worker tries again.
            if self._running and not worker.alive:
                await worker.start()
        except NotReadyError as error:
            log.error("event=verifier_not_restarted error=%s", error)
        finally:
            self._idle.put_nowait(worker)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at, so that a caller who went away leaves no "never retrieved" behind.
            task.exception()

    def _counted(self, verdict: Verdict, private: bool) -> Verdict:
        name = verdict.verifier if verdict.verifier in self.known_verifiers else "unknown"
        VERDICTS.labels(name, "private" if private else verdict.kind.value).inc()
        VERIFY_DURATION.labels(name).observe(verdict.duration_s)
        return verdict

    def _refusal(self, verifier: str, reference: str, text: str | None) -> Verdict | None:
        if verifier not in self.known_verifiers:
            known = ", ".join(self.known_verifiers)
            return Verdict(VerdictKind.ERROR, verifier[:64], f"no such verifier; there are {known}")
        for name, value in (("reference", reference), ("text", text or "")):
            if len(value) > MAX_TEXT_CHARS:
                evidence = f"the {name} has {len(value)} characters, more than {MAX_TEXT_CHARS}"
                return Verdict(VerdictKind.ERROR, verifier, evidence)
        return None


class _Lane:
    """The queue of one verifier that runs outside the worker processes."""

    def __init__(self, runner: Runner, max_waiting: int) -> None:
        self.runner = runner
        self._slots = asyncio.Semaphore(runner.concurrency)
        self._waiting = 0
        self._max_waiting = max_waiting

    async def run(self, reference: str, text: str) -> Verdict:
        """Raises OverloadedError."""
        name = self.runner.name
        problem = self.runner.problem
        if problem:
            return Verdict(VerdictKind.ERROR, name, f"{name} does not run here: {problem}")
        if self._waiting >= self._max_waiting:
            raise OverloadedError(
                f"{self._waiting} verifications wait for {name} already: send more slowly"
            )
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        began = time.monotonic()
        try:
            kind, evidence = await self._bounded(reference, text)
        finally:
            self._slots.release()
        return _verdict(kind, name, evidence[:EVIDENCE_CHARS], time.monotonic() - began)

    async def _bounded(self, reference: str, text: str) -> Finding:
        try:
            async with asyncio.timeout(self.runner.timeout_s + GRACE_S):
                return await self.runner.run(reference, text)
        except TimeoutError:
            return VerdictKind.ERROR, f"no verdict within {self.runner.timeout_s:g} s, given up"


def _verdict(kind: VerdictKind, verifier: str, evidence: str, duration_s: float) -> Verdict:
    answered = not evidence.startswith(NO_ANSWER)
    return Verdict(kind, verifier, evidence, duration_s, answered)


def _error(evidence: str) -> dict[str, Any]:
    return {"kind": VerdictKind.ERROR.value, "evidence": evidence}
