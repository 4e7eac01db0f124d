"""Whether the daemon serves, and why not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum

from opsd.daemon.errors import NotReadyError

log = logging.getLogger(__name__)


class ServingState(StrEnum):
    STARTING = "starting"  # the engine is being started, for the first time or again
    READY = "ready"
    DRAINING = "draining"  # completions in flight finish, new ones are refused
    FAILED = "failed"  # the engine died too often; a person is needed


class Availability:
    """The one place that says whether requests are taken. For one event loop."""

    def __init__(self) -> None:
        self._state = ServingState.STARTING
        self._message = "the engine is being started"
        self._listeners: list[Callable[[], None]] = []

    @property
    def state(self) -> ServingState:
        return self._state

    @property
    def message(self) -> str:
        """What is wrong, or going on; empty when READY."""
        return self._message

    @property
    def is_ready(self) -> bool:
        return self._state is ServingState.READY

    def set(self, state: ServingState, message: str = "") -> None:
        if (state, message) == (self._state, self._message):
            return
        self._state, self._message = state, message
        log.info("serving state=%s message=%s", state, message or "-")
        for listener in self._listeners:
            listener()

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Called after every change; it must not block."""
        self._listeners.append(listener)

    def require_ready(self) -> None:
        """Raises NotReadyError with the reason."""
        if self._state is ServingState.READY:
            return
        raise NotReadyError(f"not serving ({self._state}): {self._message}; try again later")
