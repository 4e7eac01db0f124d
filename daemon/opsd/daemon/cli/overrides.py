"""Training keys that a command or a file sets, as a RunSpec and the fields of it that were set."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import enum_word

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

    from opsd.v1.training_pb2 import RunSpec

# The rest of a RunSpec (model, shard, paths, device) is the daemon's to fill in.
_SECTIONS = (
    "prompt",
    "rollout",
    "objective",
    "lora",
    "optim",
    "teacher_check",
    "curriculum",
    "token_audit",
    "parallel",
)
_SCALARS = (
    "seed",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "export_every_steps",
    "heartbeat_interval_s",
)
_NOT_SETTABLE = ("objective.teacher_adapter_path",)


def parse_overrides(texts: Iterable[str]) -> tuple[RunSpec, list[str]]:
    """`--set key=value`: the values and the dotted names of what is set, for zero is a value too.

    Raises CliError that names the key and what it takes.
    """
    from opsd.v1.training_pb2 import RunSpec

    spec = RunSpec()
    fields = settable(RunSpec.DESCRIPTOR)
    seen: list[str] = []
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().removeprefix("training.")
        if not equals:
            raise _error(f"--set {text}: no `=` in it", "write --set optim.num_steps=50")
        field = fields.get(name)
        if field is None:
            raise _error(f"--set {name}: no such key", _guess(name, fields))
        if name in seen:
            raise _error(f"--set {name}: given twice", "give it once")
        seen.append(name)
        _assign(spec, name, field, value)
    return spec, seen


def read_table(table: Mapping[str, Any]) -> tuple[RunSpec, list[str], list[tuple[str, str]]]:
    """A table as TOML and JSON have it, like the configuration's ``training``.

    Returns the values, the dotted names of what is set, and (dotted name, what is wrong with it)
    of everything that cannot be.
    """
    from opsd.v1.training_pb2 import RunSpec

    spec = RunSpec()
    fields = settable(RunSpec.DESCRIPTOR)
    seen: list[str] = []
    wrong: list[tuple[str, str]] = []
    for name, value in _leaves(table):
        field = fields.get(name)
        if field is None:
            wrong.append((name, f"no such key; {_guess(name, fields)}"))
            continue
        try:
            _store(spec, name, field, _typed(field, value))
        except (ValueError, TypeError):
            wrong.append((name, f"{_shown(value)} is not {_wanted(field)}"))
        else:
            seen.append(name)
    return spec, seen, wrong


def _leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping) and (value or not prefix):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(value: object) -> str:
    """As TOML and JSON write it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _guess(name: str, fields: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, fields, 1, 0.6)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"


def settable(descriptor: Descriptor) -> dict[str, FieldDescriptor]:
    """The keys that a trigger may override, by dotted name."""
    found: dict[str, FieldDescriptor] = {}
    for name in _SCALARS:
        found[name] = descriptor.fields_by_name[name]
    for section in _SECTIONS:
        message = descriptor.fields_by_name[section].message_type
        assert message is not None, "a section is a message"
        for field in message.fields:
            found[f"{section}.{field.name}"] = field
    for name in _NOT_SETTABLE:
        del found[name]
    return found


def _assign(spec: RunSpec, name: str, field: FieldDescriptor, text: str) -> None:
    try:
        _store(spec, name, field, _parse(field, text))
    except (ValueError, TypeError) as error:
        raise _error(f"--set {name}: {text!r} is not {_wanted(field)}") from error


def _store(spec: RunSpec, name: str, field: FieldDescriptor, value: Any) -> None:
    """Raises ValueError or TypeError for what the field cannot hold."""
    *above, leaf = name.split(".")
    message: Any = getattr(spec, above[0]) if above else spec
    if field.is_repeated:
        getattr(message, leaf).extend(value)
    else:
        setattr(message, leaf, value)


def _typed(field: FieldDescriptor, value: Any) -> Any:
    """A value that has a type already; raises ValueError, also for "5" where 5 is meant."""
    if field.is_repeated:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(value)
        return [_enum_number(field, item) if field.enum_type else item for item in value]
    if field.enum_type is not None and isinstance(value, str):
        return _enum_number(field, value)
    wanted = () if field.enum_type else _KINDS.get(field.type, (int,))
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value


def _parse(field: FieldDescriptor, text: str) -> Any:
    """Raises ValueError."""
    if field.is_repeated:
        items = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
        words = [item.strip() for item in items]
        return [_enum_number(field, word) for word in words] if field.enum_type else words
    if field.enum_type is not None:
        return _enum_number(field, text)
    if field.type == field.TYPE_BOOL:
        word = text.strip().lower()
        if word not in ("true", "false"):
            raise ValueError(text)
        return word == "true"
    if field.type == field.TYPE_STRING:
        return text
    if field.type == field.TYPE_DOUBLE:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    return int(text)


def _enum_number(field: FieldDescriptor, word: str) -> int:
    assert field.enum_type is not None, "called for enums only"
    value = field.enum_type.values_by_name.get(_prefix(field) + word.strip().upper())
    if value is None or value.number == 0:
        raise ValueError(word)
    return value.number


def _prefix(field: FieldDescriptor) -> str:
    """``CLIP_MODE_`` of ``CLIP_MODE_UNSPECIFIED``."""
    assert field.enum_type is not None, "called for enums only"
    return field.enum_type.values[0].name.removesuffix("UNSPECIFIED")


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        words = [enum_word(v.name, _prefix(field)) for v in field.enum_type.values if v.number]
        return f"{'a list of some' if field.is_repeated else 'one'} of {', '.join(words)}"
    if field.is_repeated:
        return 'a list: a,b,c or ["a", "b"]'
    if field.type == field.TYPE_BOOL:
        return "true or false"
    if field.type == field.TYPE_DOUBLE:
        return "a number"
    return "text" if field.type == field.TYPE_STRING else "a whole number of at least 0"


_KINDS: dict[int, tuple[type, ...]] = {
    1: (int, float),  # FieldDescriptor.TYPE_DOUBLE
    8: (bool,),  # TYPE_BOOL
    9: (str,),  # TYPE_STRING
}
"""What a value's type may be; of every other field, a whole number."""


def _error(message: str, hint: str = "") -> CliError:
    return CliError(message, hint=hint, code=Exit.USAGE)
