"""Importing a file of records: what is dealt with stays so, whatever ends the command."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Generic, TypeVar

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.inputs import STDIN, Input, open_input, progress
from opsd.daemon.cli.jsonl import Line, read_lines
from opsd.daemon.cli.output import MESSAGE_CHARS, Output, brief, emit_json, print_table, say
from opsd.daemon.cli.resume import Place, ResumeFile, digest_of
from opsd.daemon.cli.session import Session
from opsd.daemon.cli.submit import Call, Submitter

Request = TypeVar("Request")
Result = TypeVar("Result")

SAVE_EVERY_S = 1.0
MAX_MESSAGES = 20
MALFORMED = "malformed"


@dataclass(frozen=True)
class Told:
    """What one result says: the status to count it under, and the message for a person. With
    ``refused`` the line goes into the file of rejected lines; with ``later`` it is refused for now,
    and everything after it would be: the command stays before it."""

    status: str
    message: str = ""
    refused: bool = False
    is_good: bool = True
    later: bool = False


@dataclass(frozen=True)
class ImportOptions:
    """Of one command."""

    file: str
    rejected: str = ""  # "": beside the file; of stdin, none is written
    resume: bool = True
    strict: bool = False
    strict_hint: str = "without --strict such lines go to a file of their own"
    keep_place: bool = True  # in a file, for a later command to go on from
    retries: int = 5
    output: Output = Output.TABLE
    identity: tuple[object, ...] = ()  # what else a place in the file depends on


@dataclass
class Importer(Generic[Request, Result]):
    """Reads lines, sends what they hold and keeps account of what became of each."""

    session: Session
    call: Call[Request, Result]
    parse: Callable[[bytes], Request]
    tell: Callable[[Result], Told]
    options: ImportOptions

    def run(self) -> Exit:
        """The exit code. Raises CliError; what was dealt with until then is on record."""
        with open_input(self.options.file) as opened:
            resume = self._resume_file()
            place = resume.load() if resume is not None and self.options.resume else None
            if place is not None:
                say(f"{opened.name}: going on after line {place.line}; --no-resume starts over")
                opened.skip(place.offset)
            with self._rejected(place) as rejected, progress("importing", opened.size_bytes) as bar:
                ledger = _Ledger(opened, place or Place(), rejected, resume, self.options, bar)
                code = self._send(opened, ledger, place or Place())
        ledger.report()
        return code

    def _send(self, opened: Input, ledger: _Ledger, place: Place) -> Exit:
        lines = read_lines(opened.stream, self.parse, number=place.line, offset=place.offset)

        def on_result(line: Line[Request], result: Result) -> None:
            ledger.answered(line.number, self.tell(result))

        try:
            Submitter(
                self.session, ledger.valid(lines), on_result, self.options.retries, self.call
            ).run()
        except BaseException:
            ledger.save()
            ledger.report()
            raise
        ledger.finish()
        return ledger.exit_code()

    def _resume_file(self) -> ResumeFile | None:
        if self.options.file == STDIN or not self.options.keep_place:
            return None
        path = Path(self.options.file)
        digest = digest_of(path, self.options.identity)
        return ResumeFile(path.with_name(path.name + ".opsd-resume.json"), digest)

    def _rejected(self, place: Place | None) -> _RejectedFile:
        name = self.options.rejected
        if not name and self.options.file != STDIN:
            name = self.options.file + ".rejected.jsonl"
        return _RejectedFile(Path(name) if name else None, place.rejected_bytes if place else 0)


class _RejectedFile:
    """Made with the first line that is rejected; what was written after the place that is gone on
    from is cut off."""

    def __init__(self, path: Path | None, keep_bytes: int) -> None:
        self.path = path
        self.size_bytes = keep_bytes
        self.num_lines = 0
        self._keep_bytes = keep_bytes
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _RejectedFile:
        if self.path is None or not self.path.exists():
            self.size_bytes = 0
        elif self._keep_bytes:
            with self.path.open("r+b") as file:
                file.truncate(self._keep_bytes)
        else:
            self.path.unlink()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, number: int, reason: str, raw: bytes) -> None:
        self.num_lines += 1
        if self.path is None:
            return
        record = {"line": number, "reason": reason, "record": raw.decode(errors="replace").strip()}
        try:
            if self._file is None:
                self._file = self.path.open("ab")
            self.size_bytes += self._file.write(
                json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
            )
            self._file.flush()
        except OSError as error:
            raise CliError(
                f"{self.path}: cannot be written ({error.strerror})",
                hint="name another place for rejected lines with --rejected",
            ) from error


@dataclass
class _Entry:
    """A line that was read; ``told`` once it is dealt with."""

    number: int
    end_byte: int
    raw: bytes
    told: Told | None = None


@dataclass
class _Ledger:
    """Lines in the order of the file. What stands before the first unanswered one is dealt with: it
    is counted, its rejection is on file, and the transfer can go on after it.

    Lines are read in gRPC's thread and answered in the main one.
    """

    opened: Input
    place: Place
    rejected: _RejectedFile
    resume: ResumeFile | None
    options: ImportOptions
    advance: Callable[[int], None]
    _open: deque[_Entry] = field(default_factory=deque)
    _by_number: dict[int, _Entry] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _saved_s: float = 0.0
    _messages: int = 0
    _has_bad: bool = False
    _malformed: bool = False
    _stopped: bool = False  # the command stays before the line that stopped it

    def __post_init__(self) -> None:
        self._counts = dict(self.place.counts)
        self._malformed = bool(self._counts.get(MALFORMED))
        self._has_bad = self.place.has_bad
        self._began_s = time.monotonic()
        self._done_here = 0

    def valid(self, lines: Iterator[Line[Request]]) -> Iterator[Line[Request]]:
        """The lines that can be sent; raises CliError at the first other one if so wished."""
        for line in lines:
            entry = _Entry(line.number, line.end_byte, line.raw)
            with self._lock:
                self._open.append(entry)
                if line.item is not None:
                    self._by_number[line.number] = entry
            if line.item is not None:
                yield line
            else:
                self._tell(entry, Told(MALFORMED, line.error, refused=True, is_good=False))

    def answered(self, number: int, told: Told) -> None:
        self._tell(self._by_number[number], told)

    def _tell(self, entry: _Entry, told: Told) -> None:
        if not told.is_good and not told.later:
            self._say(entry.number, told)
        with self._lock:
            entry.told = told
            self._by_number.pop(entry.number, None)
            self._settle()
        if told.later:
            raise CliError(
                f"{self.opened.name}:{entry.number}: {told.status}: "
                f"{brief(told.message, MESSAGE_CHARS)}",
                hint="the same command goes on at this line then"
                if self.resume is not None
                else f"what came before line {entry.number} was dealt with",
                code=Exit.REFUSED,
            )
        if told.refused and self.options.strict:
            raise CliError(
                f"{self.opened.name}:{entry.number}: {told.status}: "
                f"{brief(told.message, MESSAGE_CHARS)}",
                hint=self.options.strict_hint,
                code=Exit.INVALID_INPUT,
            )

    def _settle(self) -> None:
        while self._open and (told := self._open[0].told) is not None:
            entry = self._open.popleft()
            self._stopped |= told.later
            if told.later:
                continue
            if told.refused:
                self.rejected.add(entry.number, f"{told.status}: {told.message}", entry.raw)
            self._counts[told.status] = self._counts.get(told.status, 0) + 1
            self._has_bad |= not told.is_good
            self._malformed |= told.status == MALFORMED
            self._done_here += 1
            self._stopped |= told.refused and self.options.strict
            if not self._stopped:
                self.place = Place(
                    *(entry.end_byte, entry.number, self.rejected.size_bytes),
                    counts=dict(self._counts),
                    has_bad=self._has_bad,
                )
        now = time.monotonic()
        if now - self._saved_s >= SAVE_EVERY_S:
            self._saved_s = now
            self._save()
            self.advance(self.opened.position())

    def save(self) -> None:
        with self._lock:
            self._save()

    def _save(self) -> None:
        if self.resume is not None and self.place.line:
            self.resume.save(self.place)

    def finish(self) -> None:
        """The whole file is dealt with."""
        if self.resume is not None:
            self.resume.remove()

    def _say(self, number: int, told: Told) -> None:
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            why = brief(told.message, MESSAGE_CHARS)
            say(f"{self.opened.name}:{number}: {told.status}{f': {why}' if why else ''}")
        elif self._messages == MAX_MESSAGES + 1:
            where = self.rejected.path
            say(f"… and more{f': refused lines are in {where}' if where else ''}")

    def report(self) -> None:
        """The summary."""
        seconds = max(1e-9, time.monotonic() - self._began_s)
        total = sum(self._counts.values())
        has_file = self.rejected.path is not None and self.rejected.size_bytes
        if self.options.output is Output.JSON:
            emit_json(
                {
                    "lines": total,
                    "counts": self._counts,
                    "rejected_file": str(self.rejected.path) if has_file else "",
                    "seconds": round(seconds, 3),
                }
            )
            return
        rows = [(status, str(count)) for status, count in sorted(self._counts.items())]
        print_table(("outcome", "lines"), [*rows, ("total", str(total))], right=("lines",))
        say(f"{self._done_here} lines in {seconds:.1f} s ({self._done_here / seconds:.0f}/s)")
        if has_file:
            say(f"refused lines with their reasons: {self.rejected.path}")

    def exit_code(self) -> Exit:
        if self._malformed:
            return Exit.INVALID_INPUT
        return Exit.NEGATIVE_OUTCOME if self._has_bad else Exit.OK
