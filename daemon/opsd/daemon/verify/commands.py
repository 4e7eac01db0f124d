"""The verifiers ``command:NAME``: an operator's program.

It reads one JSON object, {"reference", "text"}, on standard input and writes one, {"verdict":
"pass" | "fail" | "error", "evidence": "…"}, on standard output, and ends with 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from opsd.daemon.config.verify import CommandConfig
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.output import Output, how, last_line, read_all
from opsd.daemon.verify.pipes import ended
from opsd.daemon.verify.process import INHERITED
from opsd.daemon.verify.protocol import EVIDENCE_CHARS, Finding, Isolation
from opsd.daemon.verify.sandbox import PYTHON, Sandbox, is_seen

STDOUT_BYTES = 64 << 10
STDERR_BYTES = 4 << 10
SHEBANG_BYTES = 256


@dataclass(frozen=True)
class CommandRunner:
    """``sandbox`` is None only where the operator says so."""

    name: str
    config: CommandConfig
    sandbox: Sandbox | None

    @property
    def isolation(self) -> Isolation:
        return Isolation.PROGRAM if self.sandbox is None else Isolation.SANDBOX

    @property
    def timeout_s(self) -> float:
        return self.config.timeout_s

    @property
    def concurrency(self) -> int:
        return self.config.concurrency

    @property
    def problem(self) -> str:
        program = self.config.argv[0]
        if shutil.which(program) is None:
            return f"{program} is no program: mend argv of {self.name}, or install it"
        if self.sandbox is None:
            return ""
        return _unseen_interpreter(program, self.config.read_only) or self.sandbox.problem

    async def run(self, reference: str, text: str) -> Finding:
        asked = json.dumps({"reference": reference, "text": text}).encode() + b"\n"
        try:
            async with self._process() as process:
                said = await read_all(
                    process,
                    asked,
                    timeout_s=self.timeout_s,
                    stdout_bytes=STDOUT_BYTES,
                    stderr_bytes=STDERR_BYTES,
                    kill=self._killer(process),
                )
        except OSError as error:
            return VerdictKind.ERROR, f"{self.config.argv[0]} cannot be run: {error}"
        return self._finding(said)

    async def close(self) -> None:
        """Nothing is kept between verdicts."""

    def _killer(self, process: asyncio.subprocess.Process) -> Callable[[], None]:
        if self.sandbox is not None:
            return process.kill
        # Its children too, even when it has ended itself.
        return partial(os.killpg, process.pid, signal.SIGKILL)

    def _finding(self, said: Output) -> Finding:
        if said.late:
            return VerdictKind.ERROR, f"took longer than {self.timeout_s:g} s and was killed"
        if said.flooded:
            return VerdictKind.ERROR, f"wrote more than {STDOUT_BYTES >> 10} KiB and was killed"
        if said.code != 0:
            return VerdictKind.ERROR, f"ended with {how(said.code)}{last_line(said)}"
        try:
            answer = json.loads(said.stdout)
            kind = VerdictKind(answer["verdict"])
            evidence = answer.get("evidence", "")
            if not isinstance(evidence, str):
                raise TypeError("evidence is no text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            wrote = short(said.stdout.strip()) if said.stdout.strip() else "nothing"
            return (
                VerdictKind.ERROR,
                f'it did not write {{"verdict": "pass" | "fail" | "error"}} with an evidence that '
                f"is a text, but {wrote}{last_line(said)}",
            )
        return kind, evidence[:EVIDENCE_CHARS]

    @asynccontextmanager
    async def _process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        pipe = asyncio.subprocess.PIPE
        if self.sandbox is None:
            async with _plain_process(self.config.argv) as process:
                yield process
            return
        argv = self.config.argv
        async with self.sandbox.process(
            "execute",
            {"argv": argv},
            read_only=(argv[0], *self.config.read_only),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
        ) as process:
            yield process


def _unseen_interpreter(program: str, read_only: tuple[str, ...]) -> str:
    """What to do about a script whose interpreter is not in the sandbox; "" for all else."""
    try:
        with open(program, "rb") as file:
            first = file.read(SHEBANG_BYTES).partition(b"\n")[0]
    except OSError as error:
        return f"{program} cannot be read: {error.strerror}"
    words = first.removeprefix(b"#!").decode(errors="replace").split()
    if not first.startswith(b"#!") or not words or is_seen(words[0], read_only):
        return ""
    return (
        f"{program} is a script for {words[0]}, which is not in its sandbox: put the interpreter "
        f"first in argv and the script into read_only; Python is {PYTHON} there"
    )


@asynccontextmanager
async def _plain_process(argv: tuple[str, ...]) -> AsyncIterator[asyncio.subprocess.Process]:
    pipe = asyncio.subprocess.PIPE
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await ended(process)
