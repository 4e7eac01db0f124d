"""Where an interrupted transfer goes on: a small file beside the data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opsd.daemon.cli.output import say

_VERSION = 1
_HEAD_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """How far a transfer has come."""

    offset: int = 0  # bytes of lines that are dealt with
    line: int = 0  # the number of the last of them
    rejected_bytes: int = 0  # of the file of rejected lines
    counts: dict[str, int] = field(default_factory=dict)
    has_bad: bool = False  # whether one of them was refused, or not what was wished for


class ResumeFile:
    """``FILE.opsd-resume.json``, replaced as a whole; of no use to other data or options."""

    def __init__(self, path: Path, digest: str) -> None:
        self.path = path
        self._digest = digest
        self._is_writable = True

    def load(self) -> Place | None:
        """None: there is none, or it is of another transfer."""
        try:
            found: Any = json.loads(self.path.read_bytes())
            if (found["version"], found["digest"]) != (_VERSION, self._digest):
                return None
            return Place(
                offset=int(found["offset"]),
                line=int(found["line"]),
                rejected_bytes=int(found["rejected_bytes"]),
                counts={str(key): int(count) for key, count in found["counts"].items()},
                has_bad=bool(found.get("has_bad")),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            say(f"{self.path}: of no use ({error}); starting at the beginning")
            return None

    def save(self, place: Place) -> None:
        """A directory that cannot be written costs the place, not the transfer; it is told once."""
        if not self._is_writable:
            return
        record = {
            "version": _VERSION,
            "digest": self._digest,
            "offset": place.offset,
            "line": place.line,
            "rejected_bytes": place.rejected_bytes,
            "counts": place.counts,
            "has_bad": place.has_bad,
        }
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            temporary.write_text(json.dumps(record))
            os.replace(temporary, self.path)
        except OSError as error:
            self._is_writable = False
            say(f"{self.path}: cannot be written ({error.strerror}): no resuming")

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def digest_of(file: Path | None, options: Sequence[object]) -> str:
    """Of the file's first 64 KiB, its size, and the options."""
    found = hashlib.sha256(repr(options).encode(errors="backslashreplace"))
    if file is not None:
        with file.open("rb") as opened:
            found.update(opened.read(_HEAD_BYTES))
            found.update(str(os.fstat(opened.fileno()).st_size).encode())
    return found.hexdigest()
