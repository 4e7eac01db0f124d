"""Attempts are kept in the background; what does not fit is dropped, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prometheus_client import REGISTRY

from opsd.daemon.errors import StoreError
from opsd.daemon.serve.attempts import AttemptRecorder
from opsd.daemon.types.pairs import Attempt


def attempt(number: int) -> Attempt:
    return Attempt(f"id-{number}", "r", "base", "p", "c", 1, 0.0)


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("opsd_attempts_total", {"outcome": outcome}) or 0.0


class SlowSink:
    def __init__(self) -> None:
        self.kept: list[str] = []
        self.open = threading.Event()
        self.broken = False

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        self.open.wait(10)
        if self.broken:
            raise OSError("disk full")
        self.kept += [a.id for a in attempts]


async def test_full_queue_drops_and_counts() -> None:
    sink = SlowSink()
    recorder = AttemptRecorder(sink, max_queued=3)
    dropped = counted("dropped")
    assert [recorder.offer(attempt(i)) for i in range(5)] == [True] * 3 + [False] * 2
    assert counted("dropped") == dropped + 2
    recorder.start()
    assert not await recorder.flush(0.01)
    sink.open.set()
    assert await recorder.flush()
    assert sink.kept == ["id-0", "id-1", "id-2"]
    await recorder.stop()


async def test_failing_sink_is_counted_and_survived() -> None:
    sink = SlowSink()
    sink.open.set()
    sink.broken = True
    recorder = AttemptRecorder(sink)
    recorder.start()
    failed, kept = counted("failed"), counted("kept")
    recorder.offer(attempt(1))
    assert await recorder.flush()
    assert counted("failed") == failed + 1
    sink.broken = False
    recorder.offer(attempt(2))
    await recorder.stop()
    assert sink.kept == ["id-2"]
    assert counted("kept") == kept + 1


class LockedSink:
    """A store that cannot be written to the first few times."""

    def __init__(self, num_refusals: int) -> None:
        self.kept: list[str] = []
        self.num_refusals = num_refusals

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        if self.num_refusals:
            self.num_refusals -= 1
            raise StoreError("the database is locked")
        self.kept += [a.id for a in attempts]


async def test_attempts_wait_for_a_store_that_cannot_take_them_now() -> None:
    sink = LockedSink(num_refusals=3)
    recorder = AttemptRecorder(sink, first_pause_s=0.001)
    recorder.start()
    failed, kept = counted("failed"), counted("kept")
    recorder.offer(attempt(1))
    recorder.offer(attempt(2))
    assert await recorder.flush()
    await recorder.stop()
    assert sink.kept == ["id-1", "id-2"]
    assert (counted("failed"), counted("kept")) == (failed, kept + 2)


async def test_a_batch_that_is_never_taken_is_lost_and_does_not_block_the_next() -> None:
    sink = LockedSink(num_refusals=10)
    recorder = AttemptRecorder(sink, max_batch=1, first_pause_s=0.0001)
    recorder.start()
    failed = counted("failed")
    recorder.offer(attempt(1))
    recorder.offer(attempt(2))
    assert await recorder.flush()
    await recorder.stop()
    assert sink.kept == ["id-2"]
    assert counted("failed") == failed + 1


async def test_attempts_that_still_wait_at_the_stop_are_counted() -> None:
    recorder = AttemptRecorder(LockedSink(num_refusals=10**9), max_batch=2, first_pause_s=10.0)
    recorder.start()
    dropped = counted("dropped")
    for number in range(5):
        recorder.offer(attempt(number))
    await recorder.stop(timeout_s=0.05)
    assert counted("dropped") == dropped + 5
