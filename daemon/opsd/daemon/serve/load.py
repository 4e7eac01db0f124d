"""What users of the door see, told to whoever shares the engine with them."""

from __future__ import annotations

import time
from collections.abc import Callable

from opsd.daemon.types.load import LoadObserver, Unobserved


class UserLoad:
    """Counts completions under way and passes on their latencies. For one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer: LoadObserver = Unobserved()
        self._in_flight = 0
        self._clock = clock
        self._quiet_since_s = clock()

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def idle_s(self) -> float:
        """Since the last completion ended, or since the start; 0 while there is one."""
        return 0.0 if self._in_flight else self._clock() - self._quiet_since_s

    def observe(self, observer: LoadObserver) -> None:
        """From now on ``observer`` is told; there is one at a time."""
        self._observer = observer

    def arrived(self) -> object:
        """A completion was asked for; what it returns goes to ``first_token``."""
        self._in_flight += 1
        return self._observer.arrived(self._in_flight)

    def first_token(self, tag: object, seconds: float) -> None:
        self._observer.first_token(tag, seconds)

    def tokens(self, num_tokens: int, seconds: float) -> None:
        """Between two pieces of one completion, the second one now."""
        self._observer.tokens(num_tokens, seconds)

    def left(self) -> None:
        self._in_flight -= 1
        self._quiet_since_s = self._clock()
        self._observer.left(self._in_flight)
