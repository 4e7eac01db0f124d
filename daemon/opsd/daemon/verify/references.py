"""References that are JSON objects, and how wrong ones are described."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any


class BadReferenceError(ValueError):
    """The reference cannot be compared with; the message says what is wrong and how to mend it."""


def json_object(reference: str, keys: Iterable[str]) -> dict[str, Any] | None:
    """The object that the reference is, with no other keys than these; None where it is none.

    Raises BadReferenceError.
    """
    if not reference.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(reference)
    except (ValueError, RecursionError):
        return None
    known = tuple(keys)
    if not isinstance(value, dict):
        return None
    for key in value:
        if key not in known:
            raise BadReferenceError(f"{key[:64]!r} is no key of it; there are {', '.join(known)}")
    return value


def wanted_object(reference: str, keys: Iterable[str], example: str) -> dict[str, Any]:
    """The same, where nothing else will do. Raises BadReferenceError."""
    found = json_object(reference, keys)
    if found is None:
        raise BadReferenceError(f"it is no JSON object; write for example {example}")
    return found


def text_of(value: dict[str, Any], key: str, default: str | None = None) -> str:
    """Raises BadReferenceError."""
    found = value.get(key, default)
    if found is None:
        raise BadReferenceError(f"{key!r} is missing; add it")
    if not isinstance(found, str):
        raise BadReferenceError(f"{key!r} is a {type(found).__name__}; write a text, in quotes")
    return found
