"""What a verifier is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from opsd.daemon.types.pairs import VerdictKind

EVIDENCE_CHARS = 400
"""No verdict's evidence is longer."""

Finding = tuple[VerdictKind, str]
"""A verdict's kind and its evidence."""


class Isolation(StrEnum):
    """Where a verifier does its work."""

    WORKER = "worker"  # a process that is kept, and killed at the time limit
    SANDBOX = "sandbox"  # bubblewrap, made anew for every verdict
    PROGRAM = "program"  # a process of the operator's, without a sandbox because he says so
    REMOTE = "remote"  # another service, asked over gRPC


class Check(Protocol):
    """A verifier that compares in a worker process; a user's own is one of these.

    Both methods may raise, loop or take all memory: then the verdict is error, and no other text
    suffers.
    """

    def check_reference(self, reference: str) -> str:
        """What is wrong with it and how to mend it; "" where nothing is."""
        ...

    def check(self, reference: str, text: str) -> Finding:
        """Whether ``text`` gives the answer ``reference``, and what was compared."""
        ...


@dataclass(frozen=True, slots=True)
class FunctionCheck:
    """A Check made of two functions; ``mistake`` never gets an empty reference."""

    compare: Callable[[str, str], Finding]
    mistake: Callable[[str], str]

    def check_reference(self, reference: str) -> str:
        if not reference.strip():
            return "it is empty; write the answer"
        return self.mistake(reference)

    def check(self, reference: str, text: str) -> Finding:
        return self.compare(reference, text)


class Runner(Protocol):
    """A verifier that the daemon starts or asks itself, outside the worker processes.

    ``run`` ends within ``timeout_s`` and never raises but when cancelled.
    """

    @property
    def name(self) -> str: ...

    @property
    def isolation(self) -> Isolation: ...

    @property
    def timeout_s(self) -> float: ...

    @property
    def concurrency(self) -> int:
        """Verdicts under way at once."""
        ...

    @property
    def problem(self) -> str:
        """Why it cannot verify here, with the fix; "" where it can."""
        ...

    async def run(self, reference: str, text: str) -> Finding: ...

    async def close(self) -> None: ...
