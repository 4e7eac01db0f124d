"""Exporting to a file of JSON lines: it is there whole or not at all, and goes on where it was."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.inputs import STDIN, progress
from opsd.daemon.cli.output import say
from opsd.daemon.cli.resume import Place, ResumeFile, digest_of
from opsd.daemon.cli.session import Client, Session
from opsd.daemon.cli.submit import FIRST_WAIT_S, LONGEST_WAIT_S

Message = TypeVar("Message")

SAVE_EVERY_S = 1.0


@dataclass
class Exporter(Generic[Message]):
    """Writes ``FILE.part``, then renames it. ``fetch`` streams what comes after a seq."""

    session: Session
    file: str
    fetch: Callable[[Client, int], Iterator[Message]]
    record: Callable[[Message], dict[str, Any]]
    seq: Callable[[Message], int]
    identity: tuple[object, ...]
    resume: bool = True
    retries: int = 5

    def run(self) -> int:
        """How many were written. Raises CliError."""
        if self.file == STDIN:
            return self._copy(sys.stdout.buffer, Place(), None)
        target = Path(self.file)
        part = target.with_name(target.name + ".part")
        state = ResumeFile(
            part.with_name(target.name + ".opsd-resume.json"), digest_of(None, self.identity)
        )
        place = state.load() if self.resume and part.exists() else None
        try:
            with part.open("r+b" if place else "wb") as out:
                if place:
                    # What was written after the last place that was kept may be half a line.
                    out.truncate(place.offset)
                    out.seek(place.offset)
                    say(
                        f"{part}: going on after {place.counts.get('written', 0)}; "
                        "--no-resume starts over"
                    )
                written = self._copy(out, place or Place(), state)
                out.flush()
                os.fsync(out.fileno())
            os.replace(part, target)
        except OSError as error:
            raise CliError(f"{part}: {error.strerror or error}") from error
        state.remove()
        return written

    def _copy(self, out: IO[bytes], place: Place, state: ResumeFile | None) -> int:
        """``Place.line`` is the seq of the last message."""
        failures = 0
        with progress("exporting", None) as advance:
            while True:
                before = place.line
                try:
                    place = self._stream(out, place, state, advance)
                    return place.counts.get("written", 0)
                except _LostError as lost:
                    place = lost.place
                    failures = 0 if place.line > before else failures
                    failures += 1
                    if failures > self.retries:
                        raise lost.cause from lost
                    wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1))
                    say(f"opsd: {lost.cause.message}; trying again in {wait_s:g} s")
                    time.sleep(wait_s)

    def _stream(
        self, out: IO[bytes], place: Place, state: ResumeFile | None, advance: Callable[[int], None]
    ) -> Place:
        written, offset, seq = place.counts.get("written", 0), place.offset, place.line
        saved_s = time.monotonic()

        def here() -> Place:
            return Place(offset, seq, 0, {"written": written})

        def keep() -> None:
            out.flush()
            if state is not None:
                state.save(here())

        try:
            with self.session.connect() as client:
                for message in self.fetch(client, seq):
                    line = json.dumps(self.record(message), ensure_ascii=False).encode() + b"\n"
                    out.write(line)
                    offset += len(line)
                    seq = self.seq(message)
                    written += 1
                    if time.monotonic() - saved_s >= SAVE_EVERY_S:
                        saved_s = time.monotonic()
                        keep()
                        advance(offset)
        except CliError as error:
            keep()
            if error.code is not Exit.UNREACHABLE:
                raise
            raise _LostError(error, here()) from error
        except BaseException:
            keep()
            raise
        return here()


class _LostError(Exception):
    """The connection was lost in the middle of a stream."""

    def __init__(self, cause: CliError, place: Place) -> None:
        super().__init__(cause.message)
        self.cause = cause
        self.place = place
