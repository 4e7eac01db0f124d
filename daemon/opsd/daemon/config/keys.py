"""The schema seen as a flat list of keys: what each allows, and how it is named elsewhere."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from opsd.daemon.config.schema import OpsdConfig

ENV_PREFIX = "OPSD_"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the configuration, or of one element of a list of tables."""

    path: tuple[str, ...]
    field: FieldInfo
    in_list: bool = False  # a key of [[gate.suites]]

    @property
    def name(self) -> str:
        return ".".join(self.path)

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return ENV_PREFIX + "__".join(self.path).upper()

    @property
    def kind(self) -> Any:
        """Its Python type, without None and annotations."""
        return bare_type(self.field.annotation)

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.field.annotation)

    @property
    def element(self) -> type[BaseModel] | None:
        """The table type, where the key is a list of tables."""
        inner = get_args(self.kind)
        if get_origin(self.kind) is tuple and isinstance(inner[0], type):
            return inner[0] if issubclass(inner[0], BaseModel) else None
        return None

    @property
    def allowed(self) -> str:
        """What a value may be, in words."""
        return _allowed(self)


def bare_type(annotation: Any) -> Any:
    if get_origin(annotation) is typing.Annotated:
        return bare_type(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [arg for arg in get_args(annotation) if arg is not type(None)]
        assert len(inner) == 1, "a key has one type"
        return bare_type(inner[0])
    return annotation


def is_section(field: FieldInfo) -> bool:
    kind = bare_type(field.annotation)
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _walk(model: type[BaseModel], above: tuple[str, ...], in_list: bool) -> Iterator[Key]:
    fields = model.model_fields.items()
    keys = [Key((*above, name), field, in_list) for name, field in fields if not is_section(field)]
    # In a file, a table's own keys must come before the tables inside it.
    yield from (key for key in keys if key.element is None)
    for key in keys:
        if key.element is not None:
            yield key
            yield from _walk(key.element, key.path, True)
    for name, field in fields:
        if is_section(field):
            yield from _walk(bare_type(field.annotation), (*above, name), in_list)


@cache
def all_keys() -> dict[str, Key]:
    """Every key by its dotted name, in the order that a file may hold them."""
    return {key.name: key for key in _walk(OpsdConfig, (), False)}


@cache
def sections() -> dict[str, type[BaseModel]]:
    """Every table by its dotted name, in the schema's order; "" is the top."""
    found: dict[str, type[BaseModel]] = {}

    def visit(model: type[BaseModel], path: tuple[str, ...]) -> None:
        found[".".join(path)] = model
        for name, field in model.model_fields.items():
            if is_section(field):
                visit(bare_type(field.annotation), (*path, name))

    visit(OpsdConfig, ())
    return found


def find_key(path: Sequence[str | int]) -> Key | None:
    """The key at a path, whose list indices do not matter."""
    return all_keys().get(".".join(part for part in path if isinstance(part, str)))


def dotted(path: Sequence[str | int]) -> str:
    """``("gate", "suites", 0, "path")`` as ``gate.suites[0].path``."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        else:
            out += f".{part}" if out else part
    return out


def suggest_key(path: Sequence[str | int]) -> str:
    """The known key or table that a misspelt path most probably means, or ""."""
    names = [part for part in path if isinstance(part, str)]
    above, leaf = ".".join(names[:-1]), names[-1]
    known = [*all_keys(), *(name for name in sections() if name)]
    siblings = [name for name in known if name.rpartition(".")[0] == above]
    close = difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in siblings], 1, 0.6)
    if close:
        return f"{above}.{close[0]}" if above else close[0]
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]
    if elsewhere:
        return elsewhere[0]
    others = [name for name in known if name != above]
    whole = difflib.get_close_matches(".".join(names), others, 1, 0.75)
    return whole[0] if whole else ""


def _allowed(key: Key) -> str:
    kind = key.kind
    if get_origin(kind) is Literal:
        words = ", ".join(repr(v) if isinstance(v, int) else f'"{v}"' for v in get_args(kind))
        return f"one of {words}"
    if key.element is not None:
        return "a list of tables"
    if get_origin(kind) is tuple:
        least = "" if _bound(key.field, "min_length") is None else " that is not empty"
        return f"a list of {_items(get_args(kind)[0])}{least}"
    pattern = _bound(key.field, "pattern")
    if kind in (str, Path):
        what = "a path" if kind is Path else "a string"
        return what if pattern is None else f"a string that matches {pattern}"
    name = {bool: "true or false", int: "an integer", float: "a number"}[kind]
    return name + _range(key.field)


def _items(annotation: Any) -> str:
    kind = bare_type(annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f'"{word}"' for word in get_args(kind))
    return "numbers" if kind is float else "strings"


def _bound(field: FieldInfo, name: str) -> Any:
    values = (getattr(item, name, None) for item in field.metadata)
    return next((value for value in values if value is not None), None)


def _range(field: FieldInfo) -> str:
    words = [
        f"{word} {_bound(field, name):g}" if name != "le" else f"{word} {_plain(field)}"
        for name, word in _BOUNDS.items()
        if _bound(field, name) is not None
    ]
    return f", {' and '.join(words)}" if words else ""


_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _plain(field: FieldInfo) -> str:
    """The upper bound; a large integer keeps all of its digits."""
    bound = _bound(field, "le")
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
