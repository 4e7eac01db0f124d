"""Sampling ahead: one request at a time, errors come out where they are waited for."""

import threading
from collections.abc import Sequence

import pytest

from opsd.trainer.errors import CancelledRun, SamplerError
from opsd.trainer.rollout import Rollout
from opsd.trainer.samplers import prefetch
from opsd.trainer.samplers.base import Prompt, WriteAdapter
from opsd.trainer.samplers.prefetch import Prefetch, SampleRequest

REQUEST = SampleRequest(((1, 2), (3,)), (0, 1), step=4, version=3)


class Slow:
    """Answers when ``go`` is set; a closed one raises."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.closed = False
        self.threads: list[threading.Thread] = []
        self.error: BaseException | None = None

    def sync(self, version: int, write: WriteAdapter) -> None: ...

    def sample(
        self, prompts: Sequence[Prompt], stream_ids: Sequence[int], *, step: int, version: int
    ) -> list[Rollout]:
        self.threads.append(threading.current_thread())
        self.go.wait()
        if self.closed:
            raise SamplerError("the sampler was closed")
        if self.error is not None:
            raise self.error
        return [Rollout((step,), False, (), version) for _ in prompts]

    def close(self) -> None:
        self.closed = True
        self.go.set()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_POLL_S", 0.01)


def test_samples_in_another_thread_while_the_caller_goes_on() -> None:
    sampler = Slow()
    ahead = Prefetch(sampler)
    ahead.start(REQUEST)
    under_way = ahead.under_way
    assert under_way == REQUEST
    sampler.go.set()
    assert ahead.take() == [Rollout((4,), False, (), 3)] * 2
    assert ahead.under_way is None
    ahead.start(REQUEST)
    assert len(ahead.take()) == 2
    assert threading.current_thread() not in sampler.threads
    ahead.close()


def test_progress_is_told_while_it_waits() -> None:
    sampler, told = Slow(), []

    def on_progress() -> None:
        told.append(threading.current_thread())
        if len(told) == 3:
            sampler.go.set()

    ahead = Prefetch(sampler, on_progress)
    ahead.start(REQUEST)
    assert len(ahead.take()) == 2
    assert told == [threading.current_thread()] * 3


@pytest.mark.parametrize("error", [SamplerError("no engine"), TimeoutError("late")])
def test_the_samplers_error_comes_out_of_take(error: Exception) -> None:
    sampler = Slow()
    sampler.error = error
    sampler.go.set()
    ahead = Prefetch(sampler)
    ahead.start(REQUEST)
    with pytest.raises(type(error), match=str(error)):
        ahead.take()
    # What has failed is over: the next one may begin.
    sampler.error = None
    ahead.start(REQUEST)
    assert len(ahead.take()) == 2


def test_cancellation_ends_the_wait_and_close_the_thread() -> None:
    sampler = Slow()

    def cancelled() -> None:
        raise CancelledRun

    ahead = Prefetch(sampler, cancelled)
    ahead.start(REQUEST)
    with pytest.raises(CancelledRun):
        ahead.take()
    ahead.close()
    assert sampler.closed
    assert not any(thread.is_alive() for thread in sampler.threads)


def test_one_request_at_a_time() -> None:
    sampler = Slow()
    ahead = Prefetch(sampler)
    ahead.start(REQUEST)
    with pytest.raises(AssertionError, match="has not been taken"):
        ahead.start(REQUEST)
    ahead.close()
    with pytest.raises(AssertionError, match="nothing was started"):
        ahead.take()
