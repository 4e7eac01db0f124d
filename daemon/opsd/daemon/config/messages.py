"""The schema's findings in words: the value, what is allowed, and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from opsd.daemon.config.keys import (
    Key,
    all_keys,
    bare_type,
    dotted,
    find_key,
    sections,
    suggest_key,
)
from opsd.daemon.config.lines import KeyPath
from opsd.daemon.config.problems import Problem, shown


def schema_problem(path: KeyPath, item: Mapping[str, Any]) -> Problem:
    """A pydantic error as a Problem without a place."""
    kind = item["type"]
    name = dotted(path)
    key = find_key(path)
    if kind == "extra_forbidden":
        return _unknown(path)
    if kind == "missing":
        allowed = f" ({key.allowed})" if key is not None else ""
        return Problem(name, "", "is missing", f"add {path[-1]} = …{allowed}")
    if kind == "value_error":
        # Our own validators say what and how by themselves, and a section's which of its keys.
        named, colon, message = str(item["ctx"]["error"]).partition(": ")
        if colon and named in all_keys():
            return Problem(named, "", message)
        return Problem(name, "", str(item["ctx"]["error"]))
    value = item["input"]
    if key is None:
        written = name if name else "the file"
        return Problem(name, "", f"{shown(name, value)} is not a table", f"write [{written}]")
    message = f"{shown(key.name, value)} is not allowed, must be {_allowed_at(key, path)}"
    return Problem(name, "", message, _fix(key, path, value))


def _allowed_at(key: Key, path: KeyPath) -> str:
    """Of the key, or of one element of its list."""
    if not isinstance(path[-1], int):
        return key.allowed
    if key.element is not None:
        return "a table"
    inner = bare_type(get_args(key.kind)[0])
    if get_origin(inner) is Literal:
        return "one of " + ", ".join(f'"{word}"' for word in get_args(inner))
    return "a number from 0 to 1" if inner is float else "a string"


def _fix(key: Key, path: KeyPath, value: Any) -> str:
    if get_origin(key.kind) is Literal and isinstance(value, str):
        words = [str(word) for word in get_args(key.kind)]
        close = difflib.get_close_matches(value.lower(), words, 1, 0.5)
        if close:
            bare = isinstance(get_args(key.kind)[0], int)
            return f"did you mean {close[0] if bare else repr(close[0])}?".replace("'", '"')
    if isinstance(value, str) and key.kind in (int, float, bool):
        return "write it without quotes" if _reads_as(key.kind, value) else ""
    if key.element is not None and isinstance(value, dict):
        return f"write [[{key.name}]] with two brackets"
    default = key.field.get_default(call_default_factory=True)
    if key.field.is_required() or default is None or isinstance(path[-1], int):
        return ""
    return f"the default is {shown(key.name, default)}" if default != "" else ""


def _reads_as(kind: type, text: str) -> bool:
    if kind is bool:
        return text in ("true", "false")
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _unknown(path: KeyPath) -> Problem:
    guess = suggest_key(path)
    if guess:
        table = guess in sections() or (
            guess in all_keys() and all_keys()[guess].element is not None
        )
        return Problem(
            dotted(path), "", "no such key", f"did you mean {f'[{guess}]' if table else guess}?"
        )
    above = ".".join(part for part in path[:-1] if isinstance(part, str))
    tops = sections()
    names = list(tops[above].model_fields) if above in tops else []
    fix = f"known here: {', '.join(names)}" if names else "see docs/reference/config.md"
    return Problem(dotted(path), "", "no such key", fix)
