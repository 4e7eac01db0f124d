"""What the users of the engine experience, for whoever shares it with them."""

from __future__ import annotations

from typing import Protocol


class LoadObserver(Protocol):
    """Told of every user's completion as it goes; must return at once.

    ``arrived`` returns a tag that comes back with the completion's first token.
    """

    def arrived(self, users: int) -> object:
        """A completion was asked for; ``users`` are being made now, this one included."""
        ...

    def first_token(self, tag: object, seconds: float) -> None:
        """It came so long after the arrival."""
        ...

    def tokens(self, num_tokens: int, seconds: float) -> None:
        """So many tokens of one completion took so long, up to now."""
        ...

    def left(self, users: int) -> None:
        """A completion ended, well or not; ``users`` are left."""
        ...


class Unobserved:
    """Nobody shares the engine."""

    def arrived(self, users: int) -> object:
        return None

    def first_token(self, tag: object, seconds: float) -> None: ...

    def tokens(self, num_tokens: int, seconds: float) -> None: ...

    def left(self, users: int) -> None: ...
