"""What the sources need of other parts; ``app`` supplies it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Protocol

from opsd.daemon.collect.intake import Outcome
from opsd.daemon.types.engine import AdapterHandle
from opsd.daemon.types.pairs import Origin, PairInput


class Incumbent(Protocol):
    """A lease on the adapter that serves: it stays loaded until the lease's exit."""

    @property
    def name(self) -> str: ...

    @property
    def adapter(self) -> AdapterHandle | None:
        """None: base."""
        ...


class Incumbents(Protocol):
    def lease(self) -> AbstractContextManager[Incumbent]: ...


class Permit(Protocol):
    """Room for one sample in the engine, until users need it."""

    def on_revoke(self, leave: Callable[[], object]) -> None:
        """What makes the sample leave."""
        ...


class Room(Protocol):
    """Who decides how many samples may run beside the users."""

    def next_turn(self) -> int: ...

    def room(self, turn: int) -> AbstractAsyncContextManager[Permit]:
        """Waits for room, holds it until the exit; lower turns first."""
        ...


class UserActivity(Protocol):
    """What users do."""

    @property
    def in_flight(self) -> int:
        """Completions being made for users."""
        ...

    def idle_s(self) -> float:
        """Since the last completion ended; 0 while there is one."""
        ...


class Ready(Protocol):
    @property
    def is_ready(self) -> bool: ...


class PairIntake(Protocol):
    """``Intake``, as the sources use it."""

    async def submit(
        self, given: PairInput, submitter: str, *, origin: Origin = Origin.SUBMITTED
    ) -> Outcome: ...
