"""What the gate needs of its siblings, injected by ``app``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from opsd.daemon.types.pairs import Verdict


class AnswerVerifier(Protocol):
    async def verify(self, verifier: str, reference: str, text: str) -> Verdict:
        """Judges ``text`` against ``reference``; for text it cannot judge the verdict is error."""
        ...


class Routes(Protocol):
    """Who counts the completions that use an adapter; the router."""

    def route(self, request_id: str, explicit_adapter: str = "") -> AbstractContextManager[object]:
        """A lease: the adapter stays loaded until its exit; NotFoundError when it is not loaded."""
        ...

    def total_in_flight(self) -> int:
        """Leases held now, over all adapters."""
        ...
