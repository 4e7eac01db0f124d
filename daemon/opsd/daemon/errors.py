"""Every error the daemon raises on purpose.

An error's ``code`` is the name of the gRPC status that a client sees for it; its message names the
thing, the place and the fix. Each class also derives from the standard exception it is closest to,
and survives pickling (verdicts cross a process border).
"""

from __future__ import annotations

from typing import ClassVar


class OpsdError(Exception):
    """Base of all of the project's errors."""

    code: ClassVar[str] = "INTERNAL"


class InvalidInputError(OpsdError, ValueError):
    """The caller sent something malformed or out of range."""

    code = "INVALID_ARGUMENT"


class ConfigError(OpsdError, ValueError):
    """The configuration is wrong: which key, in which line, and how to mend it."""

    code = "FAILED_PRECONDITION"


class NotFoundError(OpsdError, LookupError):
    """No such pair, run, adapter, attempt or gate report."""

    code = "NOT_FOUND"


class ConflictError(OpsdError, ValueError):
    """An id is taken by other content."""

    code = "ALREADY_EXISTS"


class StateError(OpsdError, RuntimeError):
    """The thing exists but is in a state that does not allow this."""

    code = "FAILED_PRECONDITION"


class DamagedError(StateError):
    """What the store holds is not what was written."""


class ConcurrentChangeError(OpsdError, RuntimeError):
    """Somebody else changed the row first; read again and decide again."""

    code = "ABORTED"


class OverloadedError(OpsdError, RuntimeError):
    """Admission refused the request: try again later."""

    code = "RESOURCE_EXHAUSTED"


class NotReadyError(OpsdError, RuntimeError):
    """The daemon is starting, draining, or its engine is down."""

    code = "UNAVAILABLE"


class EngineError(OpsdError, RuntimeError):
    """The inference engine failed."""

    code = "UNAVAILABLE"


class AdapterError(OpsdError, ValueError):
    """An adapter's files are corrupt, foreign, or not what its name says."""

    code = "FAILED_PRECONDITION"


class StoreError(OpsdError, RuntimeError):
    """The store could not be opened, migrated or written."""

    code = "UNAVAILABLE"


class TrainerFailure(OpsdError, RuntimeError):
    """The trainer died, hung, or wrote something that cannot be used."""

    code = "INTERNAL"


class TrainerLost(TrainerFailure):
    """The trainer, or a rank of it, was killed: started again, it goes on from its checkpoint."""


class DeadlineError(OpsdError, TimeoutError):
    """The caller's deadline passed before the answer was ready."""

    code = "DEADLINE_EXCEEDED"
