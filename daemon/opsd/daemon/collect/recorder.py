"""Records attempts behind the back of serving, which never waits for it."""

from __future__ import annotations

import asyncio
import logging

from prometheus_client import Counter

from opsd.daemon.errors import StoreError
from opsd.daemon.store.api import PairStore
from opsd.daemon.types.pairs import Attempt

log = logging.getLogger(__name__)

MAX_WAITING = 4096
MAX_BATCH = 256
RETRY_DELAYS_S = (0.1, 1.0, 5.0)

RECORDED = Counter("opsd_attempts_recorded_total", "Attempts written to the store.")
DROPPED = Counter("opsd_attempts_dropped_total", "Attempts not recorded.", ["reason"])


class AttemptRecorder:
    """A bounded queue and one task that writes it to the store in batches."""

    def __init__(self, store: PairStore, *, max_waiting: int = MAX_WAITING) -> None:
        self._store = store
        self._queue: asyncio.Queue[Attempt] = asyncio.Queue(max_waiting)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._write_for_ever(), name="attempt-recorder")

    def submit(self, attempt: Attempt) -> bool:
        """Never blocks; False when the queue is full and the attempt is dropped."""
        try:
            self._queue.put_nowait(attempt)
        except asyncio.QueueFull:
            DROPPED.labels("queue_full").inc()
            return False
        return True

    async def flush(self) -> None:
        """Returns when everything submitted before is written, or given up."""
        if self._task is not None and not self._task.done():
            await self._queue.join()

    async def stop(self) -> None:
        """Writes what is left, then ends."""
        await self.flush()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _write_for_ever(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < MAX_BATCH and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            try:
                await self._write(batch)
            finally:
                for _ in batch:
                    self._queue.task_done()

    async def _write(self, batch: list[Attempt]) -> None:
        for delay_s in (*RETRY_DELAYS_S, None):
            try:
                await asyncio.to_thread(self._store.add_attempts, batch)
                RECORDED.inc(len(batch))
                return
            except StoreError as error:
                log.warning("event=attempts_not_written attempts=%d error=%s", len(batch), error)
                if delay_s is not None:
                    await asyncio.sleep(delay_s)
            except Exception:
                # One batch must not end the recording of all later ones.
                log.exception("event=attempts_not_written attempts=%d", len(batch))
                break
        DROPPED.labels("store").inc(len(batch))
