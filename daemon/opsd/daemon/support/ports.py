"""What the support of runs needs of its siblings, injected by ``app``."""

from __future__ import annotations

from typing import Protocol

from opsd.daemon.types.runs import Run


class RunRows(Protocol):
    """Where runs are kept; the store is one. Its methods block."""

    def get_run(self, run_id: str) -> Run:
        """Raises NotFoundError."""
        ...


class Readiness(Protocol):
    """Whether the engine serves."""

    @property
    def is_ready(self) -> bool: ...

    def require_ready(self) -> None:
        """Raises NotReadyError with the reason."""
        ...
