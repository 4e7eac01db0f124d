"""Runs a problem's unit tests against code that lives in another sandbox, and reports.

The tests are the reference's and decide; the judged code is only asked. Its objects are numbers
here, so comparing, ordering and looking for a member are this side's doing, on plain data.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
import sys
import time
import types
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opsd.daemon.verify.inside.confine import confine
from opsd.daemon.verify.inside.elsewhere import (
    MESSAGE_CHARS,
    Gone,
    Link,
    SolutionModule,
    SolutionObject,
)
from opsd.daemon.verify.inside.statements import runs_by_itself
from opsd.daemon.verify.inside.wire import Wire

TESTS = Path("/opsd/tests.py")

_BUILTINS = frozenset(dir(builtins))


class Report:
    """JSON lines to the daemon, on a pipe that the judged code has no end of."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def begin(self, test: str) -> None:
        self._write({"at": test[:100]})

    def end(self, kind: str, evidence: str) -> None:
        self._write({"kind": kind, "evidence": evidence[:MESSAGE_CHARS]})

    def _write(self, line: dict[str, str]) -> None:
        os.write(self._fd, json.dumps(line).encode() + b"\n")


class FirstFailure(unittest.TestResult):
    """Stops at the first test that fails and keeps what it said."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.failfast = True
        self.message = ""
        self._report = report

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._report.begin(_name(test))

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._keep(test, err)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._keep(test, err)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            self._keep(test, err)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.message = self.message or f"{_name(test)} was expected to fail"

    def _keep(self, test: unittest.TestCase, err: Any) -> None:
        self.message = self.message or f"{_name(test)}: {explained(err[1])}"

    def _exc_info_to_string(self, err: Any, test: unittest.TestCase) -> str:
        return ""


def _name(test: unittest.TestCase) -> str:
    return test.id().rpartition(".")[2]


def explained(error: BaseException) -> str:
    """The error, and the line of the tests that it came from."""
    try:
        text = str(error)
    except Exception:
        text = ""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said[: MESSAGE_CHARS // 2]} (line {line} of the tests)" if line else said


def judge(link: Link, report: Report, entry: str) -> None:
    """Reports exactly once, unless the tests never end."""
    try:
        report.begin("the code itself")
        number, names = link.ready()
        module = SolutionObject(link, number)
        namespace = _namespace(module, names)
        report.begin("the tests' own code")
        source = TESTS.read_text()
        exec(compile(source, "tests.py", "exec"), namespace)
        num_tests, message = _run(namespace, module, report, entry)
        num_tests += runs_by_itself(ast.parse(source))
        if link.trouble:
            report.end("fail", f"{message or 'the solution was lost'} ({link.trouble})")
        elif message:
            report.end("fail", message)
        elif num_tests == 0:
            report.end("error", "no test was run")
        else:
            report.end("pass", f"{num_tests} test{'s' * (num_tests != 1)} passed")
    except Gone as error:
        report.end("fail", f"the solution: {error}")
    except AssertionError as error:
        report.end("fail", explained(error))
    except (SystemExit, KeyboardInterrupt):
        report.end("error", "the tests end their own process")
    except Exception as error:
        report.end("fail", explained(error))


def _namespace(module: SolutionObject, names: list[str]) -> dict[str, Any]:
    proxy = SolutionModule(module, names)
    sys.modules["solution"] = proxy
    namespace: dict[str, Any] = {"__name__": "tests", "solution": proxy}
    # A solution that calls something of its own "all" must not decide what the tests' all() says.
    for name in names:
        if name not in _BUILTINS and not name.startswith("__") and name != "solution":
            namespace[name] = getattr(module, name)
    return namespace


def _run(
    namespace: dict[str, Any], module: SolutionObject, report: Report, entry: str
) -> tuple[int, str]:
    """How many tests ran, and what the first that failed said."""
    result = FirstFailure(report)
    made = list(namespace.values())
    cases = [v for v in made if isinstance(v, type) and issubclass(v, unittest.TestCase)]
    functions = {
        name: value
        for name, value in namespace.items()
        if name.startswith("test") and isinstance(value, types.FunctionType)
    }
    suite = unittest.TestSuite()
    for case in cases:
        suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
    for function in functions.values():
        suite.addTest(unittest.FunctionTestCase(function))
    check = namespace.get("check")
    if entry and isinstance(check, types.FunctionType):
        suite.addTest(unittest.FunctionTestCase(_with_candidate(check, getattr(module, entry))))
    suite.run(result)
    return result.testsRun - len(result.skipped), result.message


def _with_candidate(check: Callable[[Any], Any], candidate: Any) -> Callable[[], None]:
    def run() -> None:
        check(candidate)

    run.__name__ = "check"
    return run


def main() -> None:
    settings = json.loads(sys.argv[1])
    confine(**settings["limits"])
    sys.path[1:1] = settings["packages"]
    wire = Wire(settings["read_fd"], settings["write_fd"])
    wire.deadline = time.monotonic() + settings["budget_s"]
    judge(Link(wire), Report(settings["report_fd"]), settings["entry"])
