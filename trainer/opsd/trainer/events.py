"""`events.jsonl`: what the daemon sees of a run while it goes on."""

import os
import time
from pathlib import Path
from typing import BinaryIO

from google.protobuf import json_format

from opsd.v1 import training_pb2


def to_json(message: training_pb2.TrainingEvent | training_pb2.RunResult) -> str:
    """Canonical proto3 JSON with the proto's own names, zero values included, on one line."""
    return json_format.MessageToJson(
        message,
        indent=None,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


class EventLog:
    """Appends events, each flushed as one whole line.

    Heartbeats have no thread of their own: they are written at the loop's points of progress
    (`heartbeat_if_due`), so a trainer that hangs falls silent.

    Args:
        path: of the file; None writes nothing (ranks above 0).
        num_steps: of the run.
        heartbeat_interval_s: seconds of silence after which a point of progress writes one.
    """

    def __init__(self, path: Path | None, num_steps: int, heartbeat_interval_s: float) -> None:
        self._file: BinaryIO | None = None if path is None else _open_at_line_start(path)
        self._num_steps = num_steps
        self._interval_s = heartbeat_interval_s
        self._seq = 0
        self._last_s = 0.0
        self.step = 0

    def write(
        self,
        kind: str,
        message: str = "",
        metrics: training_pb2.StepMetrics | None = None,
        teacher_check: training_pb2.TeacherCheckReport | None = None,
    ) -> None:
        """One event about the current step."""
        if self._file is None:
            return
        event = training_pb2.TrainingEvent(
            seq=self._seq,
            time_unix_s=time.time(),
            kind=kind,
            step=self.step,
            num_steps=self._num_steps,
            metrics=metrics,
            message=message,
            teacher_check=teacher_check,
        )
        self._file.write(to_json(event).encode() + b"\n")
        self._file.flush()
        self._seq += 1
        self._last_s = time.monotonic()

    def heartbeat_if_due(self) -> None:
        """Called at every point of progress."""
        if self._file is not None and time.monotonic() - self._last_s >= self._interval_s:
            self.write("heartbeat")

    def close(self) -> None:
        """No event follows."""
        if self._file is not None:
            self._file.close()


def _open_at_line_start(path: Path) -> BinaryIO:
    """Opens for appending, dropping a last line that a killed predecessor left unfinished."""
    file = path.open("a+b")
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(0, os.SEEK_END)
    return file
