"""What users of the door see, told to whoever shares the engine with them."""

from __future__ import annotations

from opsd.daemon.types.load import LoadObserver, Unobserved


class UserLoad:
    """Counts completions under way and passes on their latencies. For one event loop."""

    def __init__(self) -> None:
        self._observer: LoadObserver = Unobserved()
        self._in_flight = 0

    @property
    def in_flight(self) -> int:
        return self._in_flight

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
        self._observer.left(self._in_flight)
