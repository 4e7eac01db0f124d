"""Files of JSON lines to read: plain, gzipped or stdin, with a bar on a terminal."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, cast

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import console

STDIN = "-"
_GZIP = b"\x1f\x8b"
_SKIP_BYTES = 1 << 20


@dataclass(frozen=True)
class Input:
    """``stream`` holds the lines; ``position`` is how far the file itself has been read."""

    name: str
    stream: IO[bytes]
    position: Callable[[], int]  # bytes
    size_bytes: int | None  # of the file itself; None: not known

    def skip(self, num_bytes: int) -> None:
        """Past so many bytes of lines. Raises CliError when there are not so many."""
        left = num_bytes
        while left:
            block = self.stream.read(min(left, _SKIP_BYTES))
            if not block:
                raise CliError(
                    f"{self.name}: shorter than when it was read last",
                    hint="--no-resume starts at its beginning",
                    code=Exit.INVALID_INPUT,
                )
            left -= len(block)


@contextmanager
def open_input(file: str) -> Iterator[Input]:
    """``-`` is stdin; what begins like gzip is unpacked. Raises CliError."""
    with ExitStack() as stack:
        position, size_bytes = (lambda: 0), None
        if file == STDIN:
            opened = cast(BufferedReader, sys.stdin.buffer)
        else:
            try:
                opened = stack.enter_context(Path(file).open("rb"))
                size_bytes = Path(file).stat().st_size
            except FileNotFoundError as error:
                raise CliError(f"{file}: no such file", code=Exit.NOT_FOUND) from error
            except OSError as error:
                raise CliError(f"{file}: {error.strerror}") from error
            position = opened.tell
        stream: IO[bytes] = opened
        if opened.peek(len(_GZIP))[: len(_GZIP)] == _GZIP:
            packed = stack.enter_context(gzip.GzipFile(fileobj=opened))
            stream = cast(IO[bytes], packed)
        name = "stdin" if file == STDIN else file
        try:
            yield Input(name, stream, position, size_bytes)
        except (gzip.BadGzipFile, EOFError) as error:
            raise CliError(
                f"{name}: damaged gzip data: {error}",
                hint="test it with: gzip -t",
                code=Exit.INVALID_INPUT,
            ) from error


@contextmanager
def progress(verb: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar, on a terminal; what it yields is told how far the work is."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    most = 0
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(verb, total=total)

        def advance(done: int) -> None:
            nonlocal most
            most = max(most, done)
            bar.update(task, completed=most)

        yield advance
