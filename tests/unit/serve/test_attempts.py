"""Attempts are kept in the background; what does not fit is dropped, never waited for."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from prometheus_client import REGISTRY

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
