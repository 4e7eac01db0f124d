"""References checked before the daemon serves, by a worker of their own."""

from __future__ import annotations

import json
import select
import struct
import subprocess
import time
from types import TracebackType
from typing import Any

from opsd.daemon.errors import ConfigError
from opsd.daemon.verify.process import START_TIMEOUT_S, command, environment
from opsd.daemon.verify.registry import Registry

MEMORY_MIB = 2048
STUCK_S = 1.0

_HEADER = struct.Struct(">I")


class ReferenceChecker:
    """Says what is wrong with references, for code that cannot wait for an event loop.

    The process is started with the first question and ends with the ``with`` block. Raises
    ConfigError when it cannot be started.
    """

    def __init__(self, registry: Registry, timeout_s: float) -> None:
        self._registry = registry
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ReferenceChecker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def __call__(self, verifier: str, reference: str) -> str:
        """What is wrong with the reference of a known verifier, and how to mend it; "" where
        nothing is."""
        problem = self._registry.problem(verifier)
        if problem or not self._registry.checks_reference(verifier):
            return problem
        process = self._process or self._start()
        assert process.stdin is not None, "asked for"
        body = json.dumps({"verifier": verifier, "reference": reference}).encode()
        try:
            process.stdin.write(_HEADER.pack(len(body)) + body)
            process.stdin.flush()
            answer = self._receive(process, self._timeout_s + STUCK_S)
        except (OSError, EOFError, TimeoutError):
            self._stop()
            return f"it took longer than {self._timeout_s:g} s; write a simpler one"
        return str(answer["mistake"]) if "mistake" in answer else f"it {answer['evidence']}"

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command(MEMORY_MIB, self._timeout_s, self._registry.plugins),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(),
            start_new_session=True,
        )
        self._process = process
        try:
            self._receive(process, START_TIMEOUT_S)
        except (OSError, EOFError, TimeoutError):
            process.kill()
            said = process.communicate()[1].decode(errors="replace").strip().splitlines()
            self._process = None
            reason = said[-1] if said else "it was silent for too long"
            raise ConfigError(f"a verifier process could not start: {reason}") from None
        return process

    def _receive(self, process: subprocess.Popen[bytes], timeout_s: float) -> Any:
        ends = time.monotonic() + timeout_s
        (size,) = _HEADER.unpack(self._read(process, _HEADER.size, ends))
        return json.loads(self._read(process, size, ends))

    def _read(self, process: subprocess.Popen[bytes], size: int, ends: float) -> bytes:
        assert process.stdout is not None, "asked for"
        got = b""
        while len(got) < size:
            if not select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))[0]:
                raise TimeoutError
            chunk = process.stdout.raw.read(size - len(got))  # type: ignore[attr-defined]
            if not chunk:
                raise EOFError
            got += chunk
        return got

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
