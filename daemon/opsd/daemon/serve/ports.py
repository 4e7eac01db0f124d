"""What serving asks of the parts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opsd.daemon.types.canary import Assignment, Reply
from opsd.daemon.types.pairs import Attempt


class AttemptSink(Protocol):
    """Where attempts are kept; the store is one."""

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Blocks until they are durable; called from a thread."""


class ReplyObserver(Protocol):
    """Who compares a canary with the incumbent; called on the event loop, must return at once."""

    def replied(self, drawn: Assignment, reply: Reply) -> None:
        """A user's request ended, well or by the engine's failure."""

    def mirrored(self, canary: str, incumbent: Reply, mirror: Reply) -> None:
        """The canary has answered, unseen, what the incumbent answered for a user."""


class Unwatched:
    """Nobody compares."""

    def replied(self, drawn: Assignment, reply: Reply) -> None: ...

    def mirrored(self, canary: str, incumbent: Reply, mirror: Reply) -> None: ...
