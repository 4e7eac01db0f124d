"""Pipes, and waiting for a process that has some."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO

LEFT_OVER_S = 1.0
"""So long what a dead process left in its pipes is read."""


@dataclass(frozen=True, slots=True)
class Pipe:
    """Ends that may be closed more than once."""

    out: FileIO
    into: FileIO

    def close(self) -> None:
        self.out.close()
        self.into.close()


@contextlib.contextmanager
def open_pipe() -> Iterator[Pipe]:
    out, into = os.pipe()
    pipe = Pipe(FileIO(out, "rb"), FileIO(into, "wb"))
    try:
        yield pipe
    finally:
        pipe.close()


async def ended(process: asyncio.subprocess.Process) -> int:
    """The exit status of a process that was killed or has ended.

    asyncio tells it only when what is left in the pipes was read; somebody who fled with their
    other end is not waited for.
    """
    try:
        async with asyncio.timeout(LEFT_OVER_S):
            for pipe in (process.stdout, process.stderr):
                while pipe is not None and await pipe.read(1 << 16):
                    pass
            return await process.wait()
    except TimeoutError:
        process._transport.close()  # type: ignore[attr-defined]  # asyncio has no public way
        return await process.wait()
