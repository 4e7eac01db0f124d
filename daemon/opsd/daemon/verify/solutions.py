"""The verifier ``python``: runs the code of a text against the reference's tests, in sandboxes.

Unit tests and judged code run in two sandboxes joined by two pipes (``inside.judge`` and
``inside.solve``), so that whatever the code does to its own process, the verdict is written in
another one: it never sees the tests, nor the pipe on which they report. Programs that read standard
input get a sandbox for every case, and their output is compared here.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from io import FileIO
from typing import Any

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.code import Case, CodeTests, code_of, read_tests, same_output
from opsd.daemon.verify.extract import NoAnswerError
from opsd.daemon.verify.output import how, last_line, read_all
from opsd.daemon.verify.pipes import open_pipe
from opsd.daemon.verify.protocol import Finding, Isolation
from opsd.daemon.verify.references import BadReferenceError
from opsd.daemon.verify.sandbox import Sandbox

REPORT_BYTES = 64 << 10
STDERR_BYTES = 4 << 10


@dataclass(frozen=True)
class PythonRunner:
    """``timeout_s`` is of a whole verdict, whatever the number of tests."""

    sandbox: Sandbox
    timeout_s: float
    output_bytes: int
    concurrency: int
    packages: tuple[str, ...] = ()
    name: str = "python"
    isolation: Isolation = Isolation.SANDBOX

    @property
    def problem(self) -> str:
        return self.sandbox.problem

    async def run(self, reference: str, text: str) -> Finding:
        try:
            tests = read_tests(reference)
        except BadReferenceError as error:
            return VerdictKind.ERROR, f"the reference: {error}"
        try:
            code = code_of(text).encode()
        except NoAnswerError as error:
            return VerdictKind.FAIL, f"no answer: {error}"
        except UnicodeEncodeError:
            return VerdictKind.FAIL, "no answer: its code is no text (half a surrogate pair)"
        try:
            if tests.cases:
                return await self._cases(code, tests.cases)
            return await self._unit_tests(code, tests)
        except OSError as error:
            return VerdictKind.ERROR, f"no sandbox: {error}"

    async def close(self) -> None:
        """Nothing is kept between verdicts."""

    async def _cases(self, code: bytes, cases: tuple[Case, ...]) -> Finding:
        ends = time.monotonic() + self.timeout_s
        for number, case in enumerate(cases, start=1):
            wrong = await self._case(code, case, ends - time.monotonic())
            if wrong:
                return VerdictKind.FAIL, f"case {number} of {len(cases)}: {wrong}"
        return VerdictKind.PASS, f"{len(cases)} case{'s' * (len(cases) != 1)} passed"

    async def _case(self, code: bytes, case: Case, timeout_s: float) -> str:
        """What is wrong; "" where nothing is."""
        async with self.sandbox.process(
            "program",
            {"packages": self.packages},
            files={"solution.py": code},
            read_only=self.packages,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        ) as process:
            said = await read_all(
                process,
                case.stdin.encode("utf-8", "replace"),
                timeout_s=timeout_s,
                stdout_bytes=self.output_bytes,
                stderr_bytes=STDERR_BYTES,
                kill=process.kill,
            )
        if said.late:
            return f"no end within {self.timeout_s:g} s"
        if said.flooded:
            return f"more than {self.output_bytes >> 10} KiB of output"
        if said.code != 0:
            return f"ended with {how(said.code)}{last_line(said)}"
        if not same_output(case.stdout, said.stdout):
            return f"{short(said.stdout)} ≠ {short(case.stdout)}"
        return ""

    async def _unit_tests(self, code: bytes, tests: CodeTests) -> Finding:
        with open_pipe() as to_solution, open_pipe() as from_solution, open_pipe() as report:
            judge: dict[str, Any] = {
                "read_fd": from_solution.out.fileno(),
                "write_fd": to_solution.into.fileno(),
                "report_fd": report.into.fileno(),
                "entry": tests.entry,
                # It says itself which test the code hung in, before it is killed.
                "budget_s": max(self.timeout_s * 0.8, self.timeout_s - 1.0),
                "packages": self.packages,
            }
            solve: dict[str, Any] = {
                "read_fd": to_solution.out.fileno(),
                "write_fd": from_solution.into.fileno(),
                "packages": self.packages,
            }
            async with (
                self.sandbox.process(
                    "solve",
                    solve,
                    files={"solution.py": code},
                    read_only=self.packages,
                    fds=(solve["read_fd"], solve["write_fd"]),
                ),
                self.sandbox.process(
                    "judge",
                    judge,
                    files={"tests.py": tests.tests.encode("utf-8", "replace")},
                    read_only=self.packages,
                    fds=(judge["read_fd"], judge["write_fd"], judge["report_fd"]),
                    stderr=asyncio.subprocess.PIPE,
                ) as judging,
            ):
                # Each side sees the other's end only while no copy of ours keeps the pipe open.
                for file in (to_solution, from_solution):
                    file.close()
                report.into.close()
                return await self._verdict(judging, report.out)

    async def _verdict(self, judging: asyncio.subprocess.Process, report: FileIO) -> Finding:
        reader = asyncio.StreamReader(limit=REPORT_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), report
        )
        at = ""
        try:
            async with asyncio.timeout(self.timeout_s):
                while line := await reader.readline():
                    message = json.loads(line)
                    if "kind" in message:
                        return VerdictKind(message["kind"]), str(message["evidence"])
                    at = str(message["at"])
                assert judging.stderr is not None, "it was asked for"
                said = (await judging.stderr.read(STDERR_BYTES)).decode(errors="replace")
        except TimeoutError:
            if not at:
                return VerdictKind.ERROR, f"no sandbox within {self.timeout_s:g} s: is it too busy?"
            return VerdictKind.FAIL, f"no end within {self.timeout_s:g} s, in {at}"
        except (ValueError, KeyError, TypeError, RecursionError):
            return VerdictKind.ERROR, "the tests wrote into their own report"
        finally:
            transport.close()
        last = (said.strip().splitlines() or ["no reason given"])[-1]
        if not at:
            return VerdictKind.ERROR, f"no sandbox: {last}"
        return VerdictKind.ERROR, f"the tests' own process ended in {at}: {last}"
