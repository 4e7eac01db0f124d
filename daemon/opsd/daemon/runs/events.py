"""What a trainer tells while it runs: ``events.jsonl``, read as it grows."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from google.protobuf import json_format

from opsd.v1 import training_pb2

EVENTS_NAME: Final = "events.jsonl"

_MAX_LINE_BYTES: Final = 1 << 20
_READ_BYTES: Final = 4 << 20
_QUOTED_CHARS: Final = 200


@dataclass(slots=True)
class EventReader:
    """Reads the events that were appended since the last call.

    A last line without its newline is still being written and waits. A line that is not a
    TrainingEvent counts in ``num_garbage``; ``first_garbage`` says which one and why. Reading goes
    on after it. Fields that this version does not know are skipped.
    """

    path: Path
    offset: int = 0  # bytes read, up to the end of the last whole line
    num_events: int = 0
    num_garbage: int = 0
    first_garbage: str = ""
    _overlong: bool = field(default=False, repr=False)

    def read(self) -> list[training_pb2.TrainingEvent]:
        """New events, in order, of at most 4 MiB in one call; none before there is a file."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(_READ_BYTES)
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) > _MAX_LINE_BYTES and not self._overlong:
            self._overlong = True
            self._garbage(data, f"a line longer than {_MAX_LINE_BYTES} bytes")
        events = []
        for line in data[:end].split(b"\n")[:-1]:
            event = self._parse(line)
            if event is not None:
                events.append(event)
        self.offset += end
        self.num_events += len(events)
        return events

    def _parse(self, line: bytes) -> training_pb2.TrainingEvent | None:
        event = training_pb2.TrainingEvent()
        try:
            json_format.Parse(line.decode(), event, ignore_unknown_fields=True)
        except (ValueError, RecursionError, json_format.Error) as error:
            self._garbage(line, str(error).splitlines()[0])
            return None
        if not event.kind:
            self._garbage(line, "an event without a kind")
            return None
        return event

    def _garbage(self, line: bytes, reason: str) -> None:
        self.num_garbage += 1
        if not self.first_garbage:
            shown = line[:_QUOTED_CHARS].decode(errors="backslashreplace")
            self.first_garbage = f"after {self.num_events} events: {reason}: {shown!r}"


def prepare_for_append(run_dir: Path) -> int:
    """Cuts off a last line that its writer did not live to finish; returns the size in bytes.

    Only for a file that nobody writes to: a trainer that is started again appends to it.
    """
    path = run_dir / EVENTS_NAME
    try:
        with path.open("r+b") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            start = max(0, size_bytes - _MAX_LINE_BYTES)
            file.seek(start)
            whole = start + file.read().rfind(b"\n") + 1
            if whole < size_bytes:
                file.truncate(whole)
            return whole
    except FileNotFoundError:
        return 0
