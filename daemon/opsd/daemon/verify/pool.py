"""Verifier processes that are killed when they take too long, and replaced."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from prometheus_client import Counter, Histogram

from opsd.daemon.errors import NotReadyError, OverloadedError
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.verify.process import WorkerDiedError, WorkerProcess

log = logging.getLogger(__name__)

VERIFIERS = ("exact", "math", "numeric")
MAX_TEXT_CHARS = 1 << 20
"""A longer text or reference is not looked at; its verdict is error."""
MEMORY_MIB = 2048

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

    A request waits for a free process; when ``max_waiting`` already do, it is refused with
    OverloadedError. A process that takes too long is killed and one that dies is replaced, and that
    request's verdict is error, with the reason. To be started and used on one event loop.
    """

    def __init__(
        self,
        processes: int,
        timeout_s: float,
        *,
        max_waiting: int = 4096,
        memory_mib: int = MEMORY_MIB,
    ) -> None:
        self.timeout_s = timeout_s
        self._workers = [
            WorkerProcess(memory_mib=memory_mib, timeout_s=timeout_s) for _ in range(processes)
        ]
        self._max_waiting = max_waiting
        self._waiting = 0
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._tasks: set[asyncio.Task[object]] = set()
        self._running = False

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

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        """Whether ``text`` gives the answer ``reference``; no text, however hostile, raises.

        Raises OverloadedError, or NotReadyError when the pool is stopped or cannot start a process:
        these say nothing about the text.
        """
        refusal = _refusal(verifier, reference, text)
        if refusal is not None or text is None:
            return self._counted(
                refusal or Verdict(VerdictKind.FAIL, verifier, "no answer: no text")
            )
        if not self._running:
            raise NotReadyError("the verifiers are not running: the daemon is starting or stopping")
        if self._waiting >= self._max_waiting:
            raise OverloadedError(f"{self._waiting} verifications wait already: send more slowly")
        # A caller that gives up must not leave a process with half a conversation, nor cost one.
        work = asyncio.create_task(self._verify(verifier, reference, text))
        self._keep(work)
        try:
            return self._counted(await asyncio.shield(work))
        except asyncio.CancelledError:
            if work.cancelled():
                raise NotReadyError("the verifiers were stopped") from None
            raise

    async def verify_many(self, requests: Iterable[tuple[str, str, str | None]]) -> list[Verdict]:
        """Verdicts of (verifier, reference, text), in their order; holds no more of the queue than
        keeps the processes busy."""
        numbered = enumerate(requests)
        verdicts: dict[int, Verdict] = {}

        async def work() -> None:
            for number, request in numbered:
                verdicts[number] = await self.verify(*request)

        async with asyncio.TaskGroup() as group:
            for _ in range(self.num_processes + 1):
                group.create_task(work())
        return [verdicts[number] for number in range(len(verdicts))]

    async def _verify(self, verifier: str, reference: str, text: str) -> Verdict:
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
            return await self._ask(worker, verifier, reference, text)
        finally:
            self._keep(asyncio.create_task(self._give_back(worker)))

    async def _ask(
        self, worker: WorkerProcess, verifier: str, reference: str, text: str
    ) -> Verdict:
        request = {"verifier": verifier, "reference": reference, "text": text}
        began = time.monotonic()

        def verdict(kind: VerdictKind, evidence: str) -> Verdict:
            return Verdict(kind, verifier, evidence, time.monotonic() - began)

        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await worker.ask(request)
            return verdict(VerdictKind(answer["kind"]), answer["evidence"])
        except TimeoutError:
            await self._lost(worker, "timeout")
            return verdict(
                VerdictKind.ERROR, f"took longer than {self.timeout_s:g} s and was killed"
            )
        except WorkerDiedError as error:
            await self._lost(worker, "crash")
            return verdict(VerdictKind.ERROR, f"the verifier process died of it ({error})")
        except asyncio.CancelledError:
            await worker.stop()
            raise

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

    def _keep(self, task: asyncio.Task[Verdict] | asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Looked at, so that a caller who went away leaves no "never retrieved" behind.
            task.exception()

    def _counted(self, verdict: Verdict) -> Verdict:
        name = verdict.verifier if verdict.verifier in VERIFIERS else "unknown"
        VERDICTS.labels(name, verdict.kind.value).inc()
        VERIFY_DURATION.labels(name).observe(verdict.duration_s)
        return verdict


def _refusal(verifier: str, reference: str, text: str | None) -> Verdict | None:
    if verifier not in VERIFIERS:
        known = ", ".join(VERIFIERS)
        return Verdict(VerdictKind.ERROR, verifier[:64], f"no such verifier; there are {known}")
    for name, value in (("reference", reference), ("text", text or "")):
        if len(value) > MAX_TEXT_CHARS:
            evidence = f"the {name} has {len(value)} characters, more than {MAX_TEXT_CHARS}"
            return Verdict(VerdictKind.ERROR, verifier, evidence)
    return None
