"""What collecting needs of other parts; ``app`` supplies it."""

from __future__ import annotations

from typing import Protocol


class HeldOut(Protocol):
    """Knows the items of the held-out suites."""

    def is_held_out(self, prompt: str) -> str | None:
        """The suite that holds this problem, word for word or nearly; None when none does."""
        ...


class Flushable(Protocol):
    """Something with writes under way."""

    async def flush(self) -> object:
        """Returns when what was handed in before is stored."""
