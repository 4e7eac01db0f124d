"""What serving asks of the parts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from opsd.daemon.types.pairs import Attempt


class AttemptSink(Protocol):
    """Where attempts are kept; the store is one."""

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Blocks until they are durable; called from a thread."""
