"""What every request of an operator is read with."""

from __future__ import annotations

from typing import Any

import grpc

from opsd.daemon.errors import InvalidInputError

Context = grpc.aio.ServicerContext[Any, Any]

ACTOR_METADATA = "x-opsd-actor"
_MAX_ACTOR_CHARS = 200


def actor_of(context: Context, named: str) -> str:
    """Who asks: the request's own field, else the call's metadata."""
    actor = named
    if not actor:
        for key, value in context.invocation_metadata() or ():
            if key == ACTOR_METADATA:
                actor = value if isinstance(value, str) else value.decode("utf-8", "replace")
    actor = actor.strip()
    if len(actor) > _MAX_ACTOR_CHARS:
        raise InvalidInputError(
            f"actor: has {len(actor)} characters, at most {_MAX_ACTOR_CHARS} are kept"
        )
    return actor or "unknown"


def required(value: str, field: str) -> str:
    if not value.strip():
        raise InvalidInputError(f"{field}: is empty; name what you mean (a unique prefix will do)")
    return value.strip()
