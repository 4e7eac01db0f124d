"""How many tokens travel in one message of a stream."""

from __future__ import annotations

_UNPACED_STREAMS = 8
_MESSAGES_PER_S = 400.0
_LONGEST_INTERVAL_S = 0.125
_MOST_TOKENS = 16
_MEMORY = 0.9


class StreamPacer:
    """Chooses a stream's chunk size when it begins, from the crowd and the engine's speed.

    A message costs the event loop, and the reader, about the same whether it carries one token or
    sixteen. While few streams are open every token travels alone. Above that the time between two
    messages of one stream may grow with the crowd, to an eighth of a second at most, so that all
    streams together stay near 400 messages a second; a chunk holds the tokens that a stream makes
    in that time. A model slower than that sends single tokens to any crowd. The first token never
    waits.
    """

    def __init__(self) -> None:
        self._seconds_per_token = 0.0  # of one stream; 0: not measured yet

    def tokens_per_chunk(self, num_streams: int) -> int:
        """From 1 to 16; ``num_streams`` counts the new one."""
        crowd = num_streams - _UNPACED_STREAMS
        if crowd <= 0 or not self._seconds_per_token:
            return 1
        interval_s = min(_LONGEST_INTERVAL_S, crowd / _MESSAGES_PER_S)
        return min(_MOST_TOKENS, max(1, int(interval_s / self._seconds_per_token)))

    def finished(self, num_tokens: int, first_to_last_s: float) -> None:
        """A stream ended; ``num_tokens`` took ``first_to_last_s`` after its first one."""
        if num_tokens < 1 or first_to_last_s <= 0.0:
            return
        latest = first_to_last_s / num_tokens
        before = self._seconds_per_token or latest
        self._seconds_per_token = _MEMORY * before + (1.0 - _MEMORY) * latest
