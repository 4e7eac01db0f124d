"""What a trainer leaves behind: ``result.json``, its completion marker."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from opsd.daemon.errors import TrainerFailure
from opsd.v1 import training_pb2

RESULT_NAME: Final = "result.json"
GROUP_NAME: Final = "group.json"  # how ranks ended that did not end well

_MAX_BYTES: Final = 1 << 20
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def has_result(run_dir: Path) -> bool:
    return (run_dir / RESULT_NAME).exists()


def outcome(run_dir: Path) -> training_pb2.RunOutcome.ValueType:
    """What the result claims; UNSPECIFIED where there is none, or none that can be read."""
    try:
        return _parse(run_dir / RESULT_NAME).outcome
    except TrainerFailure:
        return training_pb2.RUN_OUTCOME_UNSPECIFIED


def discard_result(run_dir: Path) -> None:
    """Before another launch: nobody may take the earlier one's end for the new one's."""
    (run_dir / RESULT_NAME).unlink(missing_ok=True)
    (run_dir / GROUP_NAME).unlink(missing_ok=True)


def read_result(run_id: str, run_dir: Path) -> training_pb2.RunResult:
    """A result that can be used: the run's own, successful, with its adapter inside ``run_dir``.

    Raises TrainerFailure, which says what is wrong with it.
    """
    path = run_dir / RESULT_NAME
    result = _parse(path)
    if result.outcome == training_pb2.RUN_OUTCOME_CANCELLED:
        raise TrainerFailure("the trainer was stopped from outside, not by a cancelled run")
    if result.outcome != training_pb2.RUN_OUTCOME_SUCCEEDED:
        raise TrainerFailure(f"the trainer failed: {result.error or 'it gave no reason'}")
    if result.run_id != run_id:
        raise TrainerFailure(f"{path}: run_id is {result.run_id!r}, not this run's")
    if result.steps_done == 0:
        raise TrainerFailure(f"{path}: success is claimed, but steps_done is 0")
    if not math.isfinite(result.last.loss):
        raise TrainerFailure(f"{path}: the last step's loss is {result.last.loss}")
    if not _SHA256.fullmatch(result.adapter_sha256):
        raise TrainerFailure(f"{path}: adapter_sha256 {result.adapter_sha256!r} is not a SHA-256")
    adapter_dir(result, run_dir)
    return result


def adapter_dir(result: training_pb2.RunResult, run_dir: Path) -> Path:
    """The adapter's directory, links resolved; TrainerFailure unless it lies in ``run_dir``."""
    if not result.adapter_path or "\0" in result.adapter_path:
        raise TrainerFailure(f"{run_dir / RESULT_NAME}: adapter_path is missing")
    path = (run_dir / result.adapter_path).resolve()
    if not path.is_relative_to(run_dir.resolve()) or path == run_dir.resolve():
        raise TrainerFailure(f"adapter_path {result.adapter_path} lies outside the run's {run_dir}")
    if not path.is_dir():
        raise TrainerFailure(f"adapter_path {result.adapter_path} is not a directory")
    return path


def _parse(path: Path) -> training_pb2.RunResult:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise TrainerFailure(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > _MAX_BYTES:
        raise TrainerFailure(f"{path}: larger than {_MAX_BYTES} bytes: not a result")
    try:
        return json_format.Parse(
            data.decode(), training_pb2.RunResult(), ignore_unknown_fields=True
        )
    except (ValueError, RecursionError, json_format.Error) as error:
        reason = str(error).splitlines()[0]
        raise TrainerFailure(f"{path}: not a RunResult: {reason}") from error
