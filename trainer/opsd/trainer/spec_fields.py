"""Fields of a spec by their dotted names, and what may be asked of one."""

from collections.abc import Iterable
from typing import Any

from opsd.trainer.errors import SpecError
from opsd.v1 import training_pb2


def owner(spec: training_pb2.RunSpec, name: str) -> tuple[Any, str]:
    """The message that holds the dotted field, and the field's own name."""
    holder: Any = spec
    *parents, field = name.split(".")
    for parent in parents:
        holder = getattr(holder, parent)
    return holder, field


def value(spec: training_pb2.RunSpec, name: str) -> Any:
    """The dotted field's value; a list where it is repeated."""
    holder, field = owner(spec, name)
    found = getattr(holder, field)
    return list(found) if holder.DESCRIPTOR.fields_by_name[field].is_repeated else found


def require(spec: training_pb2.RunSpec, name: str, holds: bool, fix: str) -> None:
    """Raises `SpecError` unless the condition holds."""
    if not holds:
        raise SpecError(name, value(spec, name), fix)


def one_of(spec: training_pb2.RunSpec, name: str, choices: Iterable[str]) -> None:
    """The field's value is one of the choices."""
    require(spec, name, value(spec, name) in choices, f"must be one of {', '.join(choices)}")


def at_least_one(spec: training_pb2.RunSpec, *names: str) -> None:
    """Each field is at least 1."""
    for name in names:
        require(spec, name, value(spec, name) >= 1, "must be at least 1")


def above_zero(spec: training_pb2.RunSpec, *names: str) -> None:
    """Each field is above 0."""
    for name in names:
        require(spec, name, value(spec, name) > 0, "must be above 0")
