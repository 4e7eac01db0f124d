"""`--set key=value` of `opsd runs trigger`, as a RunSpec and the fields of it that were set."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import enum_word

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

    from opsd.v1.training_pb2 import RunSpec

# The rest of a RunSpec (model, shard, paths, device) is the daemon's to fill in.
_SECTIONS = ("prompt", "rollout", "objective", "lora", "optim")
_SCALARS = ("seed", "checkpoint_every_steps", "heartbeat_interval_s")
_NOT_SETTABLE = ("objective.teacher_adapter_path",)


def parse_overrides(texts: Iterable[str]) -> tuple[RunSpec, list[str]]:
    """The values and the dotted names of what is set, for zero is a value too.

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
            close = difflib.get_close_matches(name, fields, 1, 0.6)
            guess = f"did you mean {close[0]}?" if close else f"known: {', '.join(fields)}"
            raise _error(f"--set {name}: no such key", guess)
        if name in seen:
            raise _error(f"--set {name}: given twice", "give it once")
        seen.append(name)
        _assign(spec, name, field, value)
    return spec, seen


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
    *above, leaf = name.split(".")
    message: Any = getattr(spec, above[0]) if above else spec
    try:
        value = _parse(field, text)
        if field.is_repeated:
            getattr(message, leaf).extend(value)
        else:
            setattr(message, leaf, value)
    except (ValueError, TypeError) as error:
        raise _error(f"--set {name}: {text!r} is not {_wanted(field)}") from error


def _parse(field: FieldDescriptor, text: str) -> Any:
    """Raises ValueError."""
    if field.enum_type is not None:
        prefix = _prefix(field)
        value = field.enum_type.values_by_name.get(prefix + text.strip().upper())
        if value is None or value.number == 0:
            raise ValueError(text)
        return value.number
    if field.is_repeated:
        items = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
        return [item.strip() for item in items]
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


def _prefix(field: FieldDescriptor) -> str:
    """``CLIP_MODE_`` of ``CLIP_MODE_UNSPECIFIED``."""
    assert field.enum_type is not None, "called for enums only"
    return field.enum_type.values[0].name.removesuffix("UNSPECIFIED")


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        words = [enum_word(v.name, _prefix(field)) for v in field.enum_type.values if v.number]
        return f"one of {', '.join(words)}"
    if field.is_repeated:
        return 'a list: a,b,c or ["a", "b"]'
    if field.type == field.TYPE_BOOL:
        return "true or false"
    if field.type == field.TYPE_DOUBLE:
        return "a number"
    return "text" if field.type == field.TYPE_STRING else "a whole number of at least 0"


def _error(message: str, hint: str = "") -> CliError:
    return CliError(message, hint=hint, code=Exit.USAGE)
