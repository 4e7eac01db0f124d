"""Keeps attempts without serving ever waiting for it."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from opsd.daemon.errors import StoreError
from opsd.daemon.serve import metrics
from opsd.daemon.serve.ports import AttemptSink
from opsd.daemon.types.pairs import Attempt

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0
_MAX_TRIES = 10  # about three minutes


class AttemptRecorder:
    """A bounded queue in front of the sink; what does not fit is dropped and counted.

    A batch that the store cannot take now (StoreError) is offered again after ``first_pause_s``,
    which doubles up to 30 s; meanwhile the queue fills. After ten tries, or when it fails in any
    other way, it is lost and counted.
    """

    def __init__(
        self,
        sink: AttemptSink,
        *,
        max_queued: int = 4096,
        max_batch: int = 256,
        first_pause_s: float = 1.0,
        done: str = "kept",
    ) -> None:
        """``done`` is what the sink makes of attempts, in the metric's words."""
        self._sink = sink
        self._first_pause_s = first_pause_s
        self._done = done
        self._num_in_hand = 0
        self._queue: asyncio.Queue[Attempt] = asyncio.Queue(max_queued)
        self._max_batch = max_batch
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        assert self._task is None, "started already"
        self._task = asyncio.create_task(self._run(), name="attempt-recorder")

    async def stop(self, timeout_s: float = 5.0) -> None:
        """Keeps what is queued, then stops; what is left at the time-out is dropped and counted."""
        if self._task is None:
            return
        await self.flush(timeout_s)
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._task = None
        left = self._queue.qsize() + self._num_in_hand
        if left:
            metrics.ATTEMPTS.labels("dropped").inc(left)
            log.warning("attempts dropped count=%d reason=stopped before they were kept", left)

    async def flush(self, timeout_s: float = 5.0) -> bool:
        """Waits until every attempt offered so far is kept or given up; False at the time-out.

        For whoever looks an attempt up right after its completion went out.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._queue.join()
        except TimeoutError:
            return False
        return True

    def offer(self, attempt: Attempt) -> bool:
        """False: the queue is full and the attempt was dropped."""
        try:
            self._queue.put_nowait(attempt)
        except asyncio.QueueFull:
            metrics.ATTEMPTS.labels("dropped").inc()
            return False
        return True

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._max_batch and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            self._num_in_hand = len(batch)
            try:
                await self._keep(batch)
            except Exception as error:
                metrics.ATTEMPTS.labels("failed").inc(len(batch))
                log.error("attempts lost count=%d error=%s", len(batch), error)
            else:
                metrics.ATTEMPTS.labels(self._done).inc(len(batch))
            # Not reached when stopped: ``stop`` counts what was in hand.
            self._num_in_hand = 0
            for _ in batch:
                self._queue.task_done()

    async def _keep(self, batch: list[Attempt]) -> None:
        pause_s = self._first_pause_s
        for tries_left in reversed(range(_MAX_TRIES)):
            try:
                await asyncio.to_thread(self._sink.add_attempts, batch)
                return
            except StoreError as error:
                if not tries_left:
                    raise
                log.warning(
                    "attempts wait for the store count=%d retry_in_s=%g error=%s",
                    len(batch),
                    pause_s,
                    error,
                )
            await asyncio.sleep(pause_s)
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s)
