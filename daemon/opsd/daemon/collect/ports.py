"""What collecting needs of other parts; ``app`` supplies it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from opsd.daemon.store.api import AuditStore, PairChangeStore, PairStore
from opsd.daemon.types.pairs import PairInput


class HeldOut(Protocol):
    """Knows the items of the held-out suites."""

    def is_held_out(self, prompt: str) -> str | None:
        """The suite that holds this problem, word for word or nearly; None when none does."""
        ...


class Flushable(Protocol):
    """Something with writes under way."""

    async def flush(self) -> object:
        """Returns when what was handed in before is stored."""


class HeldOutMatch(Protocol):
    """A held-out problem that a prompt holds."""

    @property
    def suite(self) -> str: ...

    @property
    def item_id(self) -> str: ...

    @property
    def how(self) -> str:
        """``exact`` or a word for what differs."""
        ...

    @property
    def evidence(self) -> str:
        """What is alike, for a person."""
        ...


@runtime_checkable
class Matcher(Protocol):
    """Knows why a prompt is held out."""

    def match(self, prompt: str) -> HeldOutMatch | None: ...


class Screened(Protocol):
    """What a screen makes of a pair."""

    @property
    def pair(self) -> PairInput:
        """The pair as it is to be verified and stored."""
        ...

    @property
    def refusal(self) -> str:
        """Why it is not taken; "" when it is."""
        ...

    @property
    def quarantine(self) -> str:
        """Why it is kept apart; "" when it is not."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was changed in it, for whoever sent it."""
        ...


class Screen(Protocol):
    """Looks at a pair's texts before it is verified."""

    def screen(self, pair: PairInput) -> Screened: ...


class NearDuplicates(Protocol):
    """Knows when two problems are nearly the same."""

    def band_keys(self, prompt: str) -> tuple[int, ...]:
        """Signed 64-bit integers; near-duplicates share one with high probability."""
        ...

    def is_near_duplicate(self, a: str, b: str) -> bool: ...


class CurationStore(PairStore, PairChangeStore, AuditStore, Protocol):
    """The part of the store that an operator's changes need."""
