"""Samples in a thread of its own, so that the next step's answers come while this one trains."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from opsd.trainer.rollout import Rollout
from opsd.trainer.samplers.base import Prompt, Sampler

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What `Sampler.sample` takes."""

    prompts: tuple[Prompt, ...]
    stream_ids: tuple[int, ...]
    step: int
    version: int


class Prefetch:
    """At most one request under way. Also without looking ahead (`start`, then `take` at once) it
    is how to wait for a sampler elsewhere: `on_progress` goes on being called.

    Args:
        sampler: closed by `close`.
        on_progress: called in the caller's thread, about twice a second, while `take` waits.
    """

    def __init__(self, sampler: Sampler, on_progress: Callable[[], None] = lambda: None) -> None:
        self._sampler = sampler
        self._on_progress = on_progress
        self._request: SampleRequest | None = None
        self._answer: Future[list[Rollout]] | None = None
        self._thread: threading.Thread | None = None

    @property
    def under_way(self) -> SampleRequest | None:
        """What was started and not taken yet."""
        return self._request

    def start(self, request: SampleRequest) -> None:
        """Begins to sample; what was started before must have been taken."""
        assert self._request is None, "what was started before has not been taken"
        self._request = request
        self._answer = answer = Future[list[Rollout]]()
        # A daemon thread: an interpreter that ends on an error must not wait for a sampler.
        self._thread = threading.Thread(
            target=self._sample, args=(request, answer), name="prefetch", daemon=True
        )
        self._thread.start()

    def take(self) -> list[Rollout]:
        """Waits for what was started; raises what the sampler or `on_progress` raised."""
        assert self._answer is not None, "nothing was started"
        while True:
            # Not `result(timeout)`: the sampler may itself raise TimeoutError.
            if wait([self._answer], timeout=_POLL_S).done:
                answer, self._request, self._answer = self._answer, None, None
                return answer.result()
            self._on_progress()

    def close(self) -> None:
        """Closes the sampler and waits for the thread, whose answer nobody needs any more."""
        self._sampler.close()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._request = self._answer = None

    def _sample(self, request: SampleRequest, answer: "Future[list[Rollout]]") -> None:
        try:
            answer.set_result(
                self._sampler.sample(
                    request.prompts,
                    request.stream_ids,
                    step=request.step,
                    version=request.version,
                )
            )
        except BaseException as error:
            answer.set_exception(error)
