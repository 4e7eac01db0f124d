"""What an operator may change about one run, merged over the configured training section."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import BaseModel, ValidationError

from opsd.daemon.config.training import TrainingConfig
from opsd.daemon.errors import InvalidInputError
from opsd.v1 import training_pb2

FORBIDDEN: Final[dict[str, str]] = {
    "spec_version": "the daemon sets it",
    "run_id": "the daemon sets it",
    "output_dir": "the daemon chooses it",
    "shard": "the daemon writes it from the verified pairs; to narrow them, trigger with a source",
    "model": "a run trains the model that is served, set by model.path and model.dtype",
    "initial_adapter_path": "set training.continue_from_incumbent in the configuration",
    "objective.teacher_adapter_path": "the daemon takes the incumbent's; set objective.teacher",
    "device": "set pool.device in the configuration",
    "num_processes": "set pool.num_devices in the configuration",
    "threads_per_process": "set pool.threads_per_process in the configuration",
    "support": "the daemon sets it",
}
"""RunSpec fields that a trigger may not set, and what to do instead."""


def merge_overrides(training: TrainingConfig, overrides_json: str) -> TrainingConfig:
    """The training section with a trigger's overrides in it, checked as a whole.

    ``overrides_json`` is proto3 JSON of a RunSpec. A field that the text names is taken even when
    its value is zero; one that it leaves out keeps the configured value. Raises InvalidInputError,
    naming the field and the fix.
    """
    merged: dict[str, Any] = training.model_dump()
    for path, value in _leaves(overrides_json):
        table = merged
        for name in path[:-1]:
            table = table[name]
        table[path[-1]] = value
    try:
        return TrainingConfig.model_validate(merged)
    except ValidationError as error:
        raise InvalidInputError(_explain(error)) from error


def _leaves(overrides_json: str) -> Iterator[tuple[tuple[str, ...], object]]:
    """(path, value) of every field that the text names."""
    message = training_pb2.RunSpec()
    try:
        tree = json.loads(overrides_json or "{}")
        if not isinstance(tree, dict):
            raise InvalidInputError("overrides: a JSON object of RunSpec fields is expected")
        json_format.ParseDict(tree, message)
    except (json.JSONDecodeError, json_format.ParseError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"overrides: not a RunSpec: {reason}; see proto/opsd/v1/training.proto for its fields"
        ) from error
    yield from _walk(tree, message, ())


def _walk(
    tree: Mapping[str, object], message: Message, prefix: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], object]]:
    for key, sub_tree in tree.items():
        field = _field(message, key)
        path = (*prefix, field.name)
        dotted = ".".join(path)
        if dotted in FORBIDDEN:
            raise InvalidInputError(f"overrides: {dotted} cannot be set: {FORBIDDEN[dotted]}")
        if sub_tree is None:  # JSON null is "not set"
            continue
        if isinstance(sub_tree, dict):
            yield from _walk(sub_tree, getattr(message, field.name), path)
        else:
            yield path, _plain(field, getattr(message, field.name), dotted)


def _field(message: Message, key: str) -> Any:
    for field in message.DESCRIPTOR.fields:
        if key in (field.name, field.json_name):
            return field
    raise AssertionError(
        f"the parser accepted {key}, which {message.DESCRIPTOR.name} does not have"
    )


def _plain(field: Any, value: Any, dotted: str) -> object:
    """The value in the form that the configuration has it in."""
    if field.enum_type is not None:
        values = list(value) if field.is_repeated else [value]
        names = tuple(_enum_name(field.enum_type, number, dotted) for number in values)
        return names if field.is_repeated else names[0]
    if field.is_repeated:
        return tuple(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"overrides: {dotted} must be a finite number, got {value}")
    return value


def enum_prefix(descriptor: Any) -> str:
    """What the names of an enum's values begin with, e.g. ``CLIP_MODE_`` of ClipMode."""
    unspecified: str = descriptor.values_by_number[0].name
    return unspecified.removesuffix("UNSPECIFIED")


def _enum_name(descriptor: Any, number: int, dotted: str) -> str:
    known = descriptor.values_by_number.get(number)
    if known is None or number == 0:
        raise InvalidInputError(
            f"overrides: {dotted} is unspecified; choose one of "
            f"{', '.join(v.name for v in descriptor.values if v.number)}, or leave it out"
        )
    name: str = known.name
    return name.removeprefix(enum_prefix(descriptor)).lower()


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False):
        dotted = ".".join(str(name) for name in problem["loc"])
        meaning = _description(problem["loc"])
        hint = f" ({meaning})" if meaning else ""
        got = problem.get("input")
        parts.append(f"{dotted}{hint}: {problem['msg']}, got {got!r}")
    return f"overrides: {'; '.join(parts)}. Correct the value or leave it out"


def _description(location: tuple[int | str, ...]) -> str:
    model: type[BaseModel] = TrainingConfig
    for name in location:
        field = model.model_fields.get(str(name))
        if field is None:
            return ""
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            model = field.annotation
            continue
        return field.description or ""
    return ""
