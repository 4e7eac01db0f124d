"""A run's token audit, read line by line from where its trainer writes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from google.protobuf import json_format

from opsd.daemon.errors import NotFoundError, StateError, TrainerFailure
from opsd.daemon.types.runs import Run, RunState
from opsd.v1 import token_audit_pb2, training_pb2

FILE_NAME: Final = "token-audit.jsonl"

_QUOTED_CHARS: Final = 120
_BEFORE_TRAINING = frozenset({RunState.QUEUED, RunState.PREPARING})


def read_token_audit(run: Run, step: int = 0) -> Iterator[token_audit_pb2.AuditedAttempt]:
    """The run's audited attempts as they lie in the file; a last line that is still being written
    is left out.

    Args:
        run: its row.
        step: of this step only, from 1; 0: of all.

    Raises:
        StateError: the run has not come so far, or was told to write none.
        NotFoundError: no attempt of the step, or the file is gone.
        TrainerFailure: a line is no AuditedAttempt: names file and line.
    """
    _expect_audit(run)
    path = Path(run.run_dir) / FILE_NAME
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise _no_file(run, path) from error
    found = False
    steps: list[int] = []
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            fields = _fields(path, number, line)
            if fields["step"] not in steps[-1:]:
                steps.append(fields["step"])
            if step in (0, fields["step"]):
                found = True
                yield _attempt(path, number, fields)
    if not found and run.state is RunState.TRAINING and step == 0:
        raise _nothing_yet(run)
    if not found:
        raise _no_step(run, step, steps)


def _expect_audit(run: Run) -> None:
    if not run.run_dir or run.state in _BEFORE_TRAINING:
        raise StateError(
            f"run {run.id} is {run.state} and has not been trained: its token audit begins with "
            "its first step"
        )
    spec = training_pb2.RunSpec()
    json_format.Parse(run.spec_json or "{}", spec, ignore_unknown_fields=True)
    if not spec.token_audit.attempts_per_step:
        raise StateError(
            f"run {run.id} wrote no token audit: its token_audit.attempts_per_step is 0; set it in "
            "[training.token_audit], or for one run with "
            "`opsd runs trigger --set token_audit.attempts_per_step=1`"
        )


def _no_file(run: Run, path: Path) -> StateError | NotFoundError:
    if run.state is RunState.TRAINING:
        return _nothing_yet(run)
    return NotFoundError(
        f"run {run.id}: no file {path}: its trainer never reached a step, or somebody removed it"
    )


def _nothing_yet(run: Run) -> StateError:
    return StateError(
        f"run {run.id} is training and has not finished an audited step: ask again after step 1"
    )


def _no_step(run: Run, step: int, steps: list[int]) -> NotFoundError:
    if not steps:
        return NotFoundError(
            f"run {run.id} wrote down no attempt: it ended before its first step was over"
        )
    known = ", ".join(map(str, steps if len(steps) <= 20 else [*steps[:10], "…", *steps[-10:]]))
    return NotFoundError(
        f"run {run.id} wrote down no attempt of step {step}; it has those of step {known}"
    )


def _fields(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] | object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _malformed(path, number, line, str(error)) from error
    step = fields.get("step") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or type(step) is not int or step < 1:
        raise _malformed(path, number, line, "it has no step from 1")
    return fields


def _attempt(path: Path, number: int, fields: dict[str, Any]) -> token_audit_pb2.AuditedAttempt:
    try:
        # Twenty times as fast as the JSON parser, in a process that serves users.
        return token_audit_pb2.AuditedAttempt(**fields)
    except (TypeError, ValueError):
        pass  # infinity as JSON writes it, or a field that this version does not know
    message = token_audit_pb2.AuditedAttempt()
    try:
        json_format.ParseDict(fields, message, ignore_unknown_fields=True)
    except (json_format.Error, ValueError, TypeError) as error:
        line = json.dumps(fields).encode()
        raise _malformed(path, number, line, str(error).splitlines()[0]) from error
    return message


def _malformed(path: Path, number: int, line: bytes, reason: str) -> TrainerFailure:
    shown = line[:_QUOTED_CHARS].decode(errors="backslashreplace")
    return TrainerFailure(
        f"{path}, line {number}: not an audited attempt ({reason}): {shown!r}; remove the line "
        "to read the others"
    )
