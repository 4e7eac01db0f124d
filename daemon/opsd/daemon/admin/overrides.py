"""What a trigger overrides, as the run keeps it."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf import json_format

from opsd.daemon.errors import InvalidInputError
from opsd.v1 import admin_pb2, training_pb2


def overrides_json(request: admin_pb2.TriggerRunRequest) -> str:
    """JSON of the RunSpec fields to override: those that are not zero, and those that
    ``overridden`` names.

    Raises InvalidInputError for a path that is not a field.
    """
    tree: dict[str, Any] = json_format.MessageToDict(
        request.overrides, preserving_proto_field_name=True
    )
    if request.overridden.paths:
        whole = training_pb2.RunSpec()
        whole.CopyFrom(request.overrides)
        for section in whole.DESCRIPTOR.fields:
            if section.message_type is not None:
                getattr(whole, section.name).SetInParent()
        with_zeros: dict[str, Any] = json_format.MessageToDict(
            whole, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
        for path in request.overridden.paths:
            _take(path, with_zeros, tree)
    return json.dumps(tree)


def _take(path: str, source: dict[str, Any], target: dict[str, Any]) -> None:
    *above, leaf = path.split(".")
    for name in above:
        below = source.get(name)
        if not isinstance(below, dict):
            raise _unknown(path)
        source = below
        target = target.setdefault(name, {})
    if leaf not in source or isinstance(source[leaf], dict):
        raise _unknown(path)
    target[leaf] = source[leaf]


def _unknown(path: str) -> InvalidInputError:
    return InvalidInputError(
        f"overridden: {path[:80]!r} is no field of RunSpec; name one like optim.warmup_steps "
        "(proto/opsd/v1/training.proto has them all)"
    )
