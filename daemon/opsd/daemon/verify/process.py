"""The daemon's end of one verifier process."""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
from collections.abc import Mapping
from typing import Any

from opsd.daemon.errors import NotReadyError

MODULE = "opsd.daemon.verify.worker"
START_TIMEOUT_S = 120.0
STDERR_BYTES = 4096
# What Python needs to find the same packages; not the daemon's passwords and tokens.
INHERITED = ("PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "LANG", "LC_ALL")

_HEADER = struct.Struct(">I")


class WorkerDiedError(Exception):
    """The process ended in the middle of a request; the message says how."""


def command(memory_mib: int, timeout_s: float, plugins: Mapping[str, str]) -> list[str]:
    """That starts a worker whose parent is this process."""
    arguments = [str(os.getpid()), str(memory_mib), str(timeout_s), json.dumps(dict(plugins))]
    # -P: the working directory is no place to import from.
    return [sys.executable, "-P", "-m", MODULE, *arguments]


def environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return inherited | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}


class WorkerProcess:
    """A child started from a clean interpreter: nothing of the daemon's memory is in it."""

    def __init__(
        self, *, memory_mib: int, timeout_s: float, plugins: Mapping[str, str] | None = None
    ) -> None:
        """``plugins`` maps the names of users' verifiers to ``module:attribute``."""
        self._plugins = dict(plugins or {})
        self._memory_mib = memory_mib
        self._timeout_s = timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self.alive and self._process is not None else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Returns when it is warm; raises NotReadyError."""
        self._process = await asyncio.create_subprocess_exec(
            *command(self._memory_mib, self._timeout_s, self._plugins),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment(),
            start_new_session=True,  # a Ctrl-C on the terminal is for the daemon to act on
        )
        assert self._process.stderr is not None, "it was asked for"
        self._stderr = asyncio.create_task(_tail(self._process.stderr))
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._receive()
        except (TimeoutError, asyncio.IncompleteReadError) as error:
            said = await self.stop()
            raise NotReadyError(
                f"a verifier process could not start ({MODULE} with {sys.executable}): "
                f"{said or 'it was silent for too long'}"
            ) from error
        except BaseException:
            await self.stop()
            raise

    async def ask(self, request: dict[str, str]) -> dict[str, Any]:
        """Raises WorkerDiedError."""
        process = self._process
        assert process is not None, "started"
        assert process.stdin is not None, "asked for"
        body = json.dumps(request).encode()
        try:
            process.stdin.write(_HEADER.pack(len(body)) + body)
            await process.stdin.drain()
            return await self._receive()
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await process.wait()
            how = f"signal {-code}" if code < 0 else f"exit status {code}"
            raise WorkerDiedError(how) from error

    async def stop(self) -> str:
        """Kills it and waits until it is gone; gives the last line it said."""
        if self._process is None:
            return ""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        said = await self._stderr if self._stderr is not None else b""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = self._stderr = None
        lines = said.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    async def _receive(self) -> dict[str, Any]:
        assert self._process is not None, "started"
        assert self._process.stdout is not None, "asked for"
        pipe = self._process.stdout
        (size,) = _HEADER.unpack(await pipe.readexactly(_HEADER.size))
        message: dict[str, Any] = json.loads(await pipe.readexactly(size))
        return message


async def _tail(pipe: asyncio.StreamReader) -> bytes:
    """Reads to the end, so that the process never blocks on it, and keeps the last of it."""
    kept = b""
    while chunk := await pipe.read(STDERR_BYTES):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept
