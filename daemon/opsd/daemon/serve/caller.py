"""Who asks for a completion, as far as they say."""

from __future__ import annotations

from typing import Any

import grpc

METADATA = "x-opsd-actor"
_MAX_CHARS = 200


def caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """The call's metadata ``x-opsd-actor``; "" where there is none. It is a label, no proof."""
    for key, value in context.invocation_metadata() or ():
        if key == METADATA:
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            return text.strip()[:_MAX_CHARS]
    return ""
