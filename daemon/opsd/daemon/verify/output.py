"""A process's output, no more of it than one wants."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from opsd.daemon.verify.checks import short
from opsd.daemon.verify.pipes import LEFT_OVER_S, ended

_LIMITS = {9: "out of memory or time", 24: "out of processor time", 25: "too large a file"}


@dataclass(frozen=True, slots=True)
class Output:
    """``code`` is the exit status, negative for a signal; late and flooded processes are killed."""

    code: int
    stdout: str
    stderr: str
    late: bool = False
    flooded: bool = False


async def read_all(
    process: asyncio.subprocess.Process,
    stdin: bytes,
    *,
    timeout_s: float,
    stdout_bytes: int,
    stderr_bytes: int,
    kill: Callable[[], None],
) -> Output:
    """Feeds the process and reads until it ends; then ``kill`` ends all that is left of it.

    Of standard error the last bytes are kept; more on standard output than ``stdout_bytes`` ends
    the process.
    """
    assert process.stdout is not None, "it was asked for"
    assert process.stderr is not None, "it was asked for"
    feeding = asyncio.create_task(_feed(process, stdin))
    stderr = asyncio.create_task(_tail(process.stderr, stderr_bytes))
    late, out = False, bytearray()
    try:
        async with asyncio.timeout(max(timeout_s, 0.0)):
            while len(out) <= stdout_bytes:
                chunk = await process.stdout.read(1 << 16)
                if not chunk:
                    break
                out += chunk
            if len(out) <= stdout_bytes:
                # It may close its output and go on.
                await process.wait()
    except TimeoutError:
        late = True
    finally:
        with contextlib.suppress(ProcessLookupError):
            kill()
        feeding.cancel()
        await asyncio.wait([feeding, stderr], timeout=LEFT_OVER_S)
        stderr.cancel()
    code = await ended(process)
    kept = b"" if stderr.cancelled() or not stderr.done() else stderr.result()
    return Output(
        code,
        bytes(out[:stdout_bytes]).decode(errors="replace"),
        kept.decode(errors="replace"),
        late=late,
        flooded=len(out) > stdout_bytes,
    )


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None, "it was asked for"
    # It may end without reading what it is given.
    with contextlib.suppress(ConnectionError):
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()


async def _tail(pipe: asyncio.StreamReader, size: int) -> bytes:
    kept = b""
    while chunk := await pipe.read(1 << 16):
        kept = (kept + chunk)[-size:]
    return kept


def how(code: int) -> str:
    """An exit status in words; bubblewrap tells of a signal as 128 and the signal's number."""
    signal = -code if code < 0 else code - 128
    if signal in _LIMITS:
        return _LIMITS[signal]
    return f"signal {signal}" if signal > 0 else f"exit status {code}"


def last_line(said: Output) -> str:
    """Of standard error, to follow a colon; "" where there is none."""
    lines = said.stderr.strip().splitlines()
    return f": {short(lines[-1])}" if lines else ""
