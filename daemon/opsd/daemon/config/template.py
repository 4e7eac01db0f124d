"""The configuration as text: a commented file to start from, and the resolved values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from opsd.daemon.config.keys import Key, all_keys, dotted
from opsd.daemon.config.load import LoadedConfig
from opsd.daemon.config.problems import hide_secrets

REQUIRED = frozenset({"model.path"})
"""Keys that have no useful default."""

_HEAD = """\
# Configuration of opsd. Every key is here, with its default commented out.
# Relative paths are taken from this file's directory. An environment variable overrides a key:
# {example} is [server] port. Check it with: opsd config check
"""


def template(model_path: str = "") -> str:
    """A TOML text with every key; valid as it is. ``model_path`` fills in the one required key."""
    out = [_HEAD.format(example=all_keys()["server.port"].variable)]
    table = ""
    for key in all_keys().values():
        if key.in_list:
            continue
        above = ".".join(key.path[:-1])
        if above != table:
            table = above
            out.append(f"[{table}]\n")
        out.append(_entry(key, model_path))
    return "\n".join(out)


def _entry(key: Key, model_path: str) -> str:
    if key.element is not None:
        return _list_entry(key)
    lines = [f"# {describe(key)}"]
    comment, value = "#", "…" if key.optional else toml_value(default_of(key))
    if key.name in REQUIRED:
        lines[0] = f"# REQUIRED. {describe(key)}"
        value = '"/path/to/model"'
    if key.name == "model.path" and model_path:
        comment, value = "", toml_value(model_path)
    return "\n".join([*lines, f"{comment}{key.path[-1]} = {value}", ""])


def _list_entry(key: Key) -> str:
    lines = [f"# {describe(key)}", f"#[[{key.name}]]"]
    for below in all_keys().values():
        if below.in_list and below.path[:-1] == key.path:
            value = "…" if below.field.is_required() else toml_value(default_of(below))
            lines += [f"## {describe(below)}", f"#{below.path[-1]} = {value}"]
    return "\n".join([*lines, ""])


def describe(key: Key) -> str:
    """Its description and what it allows, in one line."""
    return f"{key.field.description} ({key.allowed})"


def default_of(key: Key) -> Any:
    return key.field.get_default(call_default_factory=True)


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {toml_value(v)}" for k, v in value.items()) + " }"
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def resolved(loaded: LoadedConfig) -> Iterator[tuple[str, Any, str]]:
    """Every key with its value (passwords hidden) and where it came from."""
    for key in all_keys().values():
        if key.in_list:
            continue
        value: Any = loaded.config
        for part in key.path:
            value = getattr(value, part)
        if key.element is not None:
            for index, item in enumerate(value):
                for name in type(item).model_fields:
                    path = dotted((*key.path, index, name))
                    yield path, getattr(item, name), loaded.where(path) or "default"
            continue
        if key.name == "store.url":
            value = hide_secrets(value)
        yield key.name, _plain(value), loaded.where(key.name) or "default"


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
