"""Operators' programs and users' own verifiers; and that none holds up another."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from opsd.daemon.config.verify import CommandConfig, VerifyConfig
from opsd.daemon.errors import ConfigError, NotReadyError, OverloadedError
from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify import sandbox as sandbox_module
from opsd.daemon.verify.commands import CommandRunner
from opsd.daemon.verify.pool import VerifierPool
from opsd.daemon.verify.protocol import Isolation
from opsd.daemon.verify.reference_checker import ReferenceChecker
from opsd.daemon.verify.registry import Registry, build_registry
from opsd.daemon.verify.sandbox import Sandbox

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR

# --- operators' programs


def program(folder: Path, body: str) -> str:
    """A program, in Python, that has read its request as ``asked``."""
    path = folder / "verifier"
    path.write_text(
        f"#!{sys.executable}\nimport json, os, sys, time\n"
        "asked = json.loads(sys.stdin.readline())\n"
        f"def say(**answer): print(json.dumps(answer))\n{body}\n"
    )
    path.chmod(0o755)
    folder.chmod(0o755)
    return str(path)


def plain(path: str, timeout_s: float = 20.0) -> CommandRunner:
    config = CommandConfig(name="mine", argv=(path,), sandbox=False, timeout_s=timeout_s)
    return CommandRunner("command:mine", config, None)


async def test_a_program_decides(tmp_path: Path) -> None:
    path = program(
        tmp_path,
        "same = asked['text'] == asked['reference'][::-1]\n"
        "say(verdict='pass' if same else 'fail', evidence=asked['text'])",
    )
    runner = plain(path)
    assert (runner.problem, runner.isolation) == ("", Isolation.PROGRAM)
    assert await runner.run("abc", "cba") == (PASS, "cba")
    assert await runner.run("abc", "abc\n\ud800") == (FAIL, "abc\n\ud800")


@pytest.mark.parametrize(
    ("body", "evidence"),
    [
        ("sys.exit('out of order')", "exit status 1: 'out of order'"),
        ("print('no')", "did not write"),
        ("print('no')", "but 'no'"),
        ("print('{}'); sys.stderr.write('why')", "but '{}': 'why'"),
        ("sys.exit()", "but nothing"),
        ("say(verdict='maybe')", "did not write"),
        ("say(verdict='pass', evidence=[1])", "did not write"),
        ("say(verdict='pass'); sys.exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), 9)", "out of memory or time"),
        ("while True: print('x' * 1000)", "more than 64 KiB"),
        ("time.sleep(600)", "longer than 2 s"),
        ("os.close(1); time.sleep(600)", "longer than 2 s"),
        ("if os.fork(): say(verdict='pass'); sys.exit()\ntime.sleep(600)", "longer than 2 s"),
        ("if os.fork(): os._exit(0)\nos.setsid(); time.sleep(20)", "longer than 2 s"),
    ],
)
async def test_a_program_that_fails_is_an_error(tmp_path: Path, body: str, evidence: str) -> None:
    kind, said = await plain(program(tmp_path, body), timeout_s=2.0).run("a", "b")
    assert kind is ERROR, said
    assert evidence in said


async def test_a_programs_environment_is_not_the_daemons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPSD_TEST_SECRET", "swordfish")
    runner = plain(program(tmp_path, "say(verdict='pass', evidence=str(dict(os.environ)))"))
    kind, said = await runner.run("a", "b")
    assert kind is PASS
    assert "swordfish" not in said


async def test_a_sandboxed_program(sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "verifier.py"
    path.write_text(
        "import json, os, sys\n"
        "asked = json.loads(sys.stdin.readline())\n"
        "seen = [p for p in sys.argv[1:] if os.path.exists(p)]\n"
        "print(json.dumps({'verdict': asked['reference'], 'evidence': ' '.join(seen)}))\n"
    )
    for shown, mode in ((path, 0o644), (tmp_path, 0o755)):
        os.chmod(shown, mode)
    interpreter = sandbox_module.PYTHON
    argv = (interpreter, "-I", "-S", str(path), "/etc/passwd", str(path))
    config = CommandConfig(name="mine", argv=argv, read_only=(str(path),), timeout_s=20.0)
    runner = CommandRunner("command:mine", config, sandbox)
    assert (runner.problem, runner.isolation) == ("", Isolation.SANDBOX)
    assert await runner.run("pass", "x") == (PASS, str(path))
    absent = CommandConfig(name="mine", argv=("/nowhere/program",))
    assert "/nowhere/program is no program" in CommandRunner("m", absent, sandbox).problem


async def test_a_script_whose_interpreter_is_not_in_the_sandbox_is_refused(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    script = tmp_path / "verifier"

    def problem(first_line: str, *read_only: str, within: Sandbox | None = sandbox) -> str:
        script.write_text(f"{first_line}\n")
        script.chmod(0o755)
        config = CommandConfig(name="mine", argv=(str(script),), read_only=read_only)
        return CommandRunner("command:mine", config, within).problem

    said = problem("#!/usr/bin/env python3")
    assert f"{script} is a script for /usr/bin/env, which is not in its sandbox" in said
    assert sandbox_module.PYTHON in said
    assert problem("#! /bin/sh -e") != ""
    assert problem("#!/bin/sh", "/bin/sh") == ""
    assert problem("#!/usr/bin/env python3", within=None) == ""
    assert problem(f"#!{sandbox_module.PYTHON} -I") == ""
    assert problem("\x7fELF") == ""


# --- users' own verifiers


def installed(folder: Path, name: str = "palindrome") -> EntryPoint:
    (folder / "users_verifier.py").write_text(
        "import time\n"
        "class Palindrome:\n"
        "    def check_reference(self, reference):\n"
        "        return '' if reference == 'palindrome' else 'write palindrome'\n"
        "    def check(self, reference, text):\n"
        "        if text == 'hang': time.sleep(600)\n"
        "        if text == 'raise': raise ValueError('no')\n"
        "        return ('pass' if text == text[::-1] else 'fail'), f'{text} backwards'\n"
    )
    return EntryPoint(name, "users_verifier:Palindrome", "opsd.verifiers")


async def test_a_users_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    registry = build_registry(VerifyConfig(), [installed(tmp_path)])
    pool = VerifierPool(1, 2.0, registry=registry)
    assert "palindrome" in pool.known_verifiers
    await pool.start()
    verdict = await pool.verify("palindrome", "palindrome", "anna")
    assert (verdict.kind, verdict.verifier) == (PASS, "palindrome")
    assert verdict.evidence == "anna backwards"
    assert (await pool.verify("palindrome", "palindrome", "otto?")).kind is FAIL
    assert (await pool.verify("palindrome", "palindrome", "raise")).kind is ERROR
    hung = await pool.verify("palindrome", "palindrome", "hang")
    assert (hung.kind, "killed" in hung.evidence) == (ERROR, True)
    assert await pool.check_reference("palindrome", "else") == "write palindrome"
    assert await pool.check_reference("palindrome", "palindrome") == ""
    await pool.stop()


@pytest.mark.parametrize("name", ["math", "python", "Loud", "a" * 33])
def test_a_name_that_is_taken_or_malformed_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}.*rename its entry point"):
        build_registry(VerifyConfig(), [installed(tmp_path, name)])


def test_two_packages_cannot_share_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="taken by users_verifier:Palindrome"):
        build_registry(VerifyConfig(), [installed(tmp_path), installed(tmp_path)])


async def test_a_verifier_that_cannot_be_imported_stops_the_start(tmp_path: Path) -> None:
    broken = EntryPoint("broken", "nowhere_to_be_found:X", "opsd.verifiers")
    registry = build_registry(VerifyConfig(), [broken])
    with pytest.raises(NotReadyError, match="nowhere_to_be_found"):
        await VerifierPool(1, 2.0, registry=registry).start()
    with (
        pytest.raises(ConfigError, match="nowhere_to_be_found"),
        ReferenceChecker(registry, 2.0) as c,
    ):
        c("exact", "x")


# --- all together


class Slow:
    """A runner that waits until it is let go."""

    name = "python"
    isolation = Isolation.SANDBOX
    timeout_s = 0.2
    concurrency = 1
    problem = ""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.running = 0
        self.most = 0

    async def run(self, reference: str, text: str) -> tuple[VerdictKind, str]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go.wait()
        finally:
            self.running -= 1
        return PASS, "it is"

    async def close(self) -> None:
        pass


async def test_slow_verifiers_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    pool = VerifierPool(1, 20.0, registry=Registry({"python": slow}), max_waiting=2)
    await pool.start()
    waiting = [asyncio.create_task(pool.verify("python", "x", "x")) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="wait for python"):
        await pool.verify("python", "x", "x")
    assert (await pool.verify("exact", "2", "2")).kind is PASS
    many = asyncio.create_task(
        pool.verify_many([("exact", "2", "2")] * 5 + [("numeric", "2", "3")] * 5)
    )
    assert [v.kind for v in await many] == [PASS] * 5 + [FAIL] * 5
    slow.go.set()
    assert [v.kind for v in await asyncio.gather(*waiting)] == [PASS] * 3
    assert slow.most == 1
    await pool.stop()


async def test_a_runner_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsd.daemon.verify.pool.GRACE_S", 0.1)
    slow = Slow()
    pool = VerifierPool(1, 20.0, registry=Registry({"python": slow}))
    await pool.start()
    verdict = await pool.verify("python", "x", "x")
    assert (verdict.kind, "given up" in verdict.evidence) == (ERROR, True)
    monkeypatch.setattr("opsd.daemon.verify.pool.GRACE_S", 600.0)
    stuck = asyncio.create_task(pool.verify("python", "x", "x"))
    await asyncio.sleep(0.05)
    await pool.stop()
    with pytest.raises(NotReadyError):
        await stuck
    assert slow.running == 0


async def test_where_no_sandbox_can_be_made_python_is_refused(tmp_path: Path) -> None:
    registry = build_registry(VerifyConfig(sandbox=str(tmp_path / "bwrap")), [])
    pool = VerifierPool(1, 20.0, registry=registry)
    await pool.start()
    tests = json.dumps({"tests": "assert f() == 1"})
    verdict = await pool.verify("python", tests, "def f(): return 1")
    assert verdict.kind is ERROR
    assert "apt-get install bubblewrap" in verdict.evidence
    assert "apt-get install bubblewrap" in await pool.check_reference("python", tests)
    with ReferenceChecker(registry, 20.0) as mistake:
        assert "apt-get install bubblewrap" in mistake("python", tests)
    await pool.stop()


async def test_references_are_checked_in_a_process(tmp_path: Path) -> None:
    registry = build_registry(VerifyConfig(), [])
    pool = VerifierPool(1, 20.0, registry=registry)
    await pool.start()
    wrong = {
        "math": "$ $", "numeric": "two", "exact": " ", "regex": "(", "choice": "Z",
        "json": "{", "python": "assert",
    }  # fmt: skip
    right = {
        "math": "\\frac{1}{2}", "numeric": "2 m", "exact": "two", "regex": "a", "choice": "B",
        "json": '{"expected": 1}', "python": '{"tests": "assert f()"}',
    }  # fmt: skip
    with ReferenceChecker(registry, 20.0) as mistake:
        for name in wrong:
            if registry.problem(name):
                continue  # nothing is sandboxed here
            assert await pool.check_reference(name, wrong[name]), name
            assert await pool.check_reference(name, right[name]) == "", name
            assert mistake(name, wrong[name]) == await pool.check_reference(name, wrong[name])
            assert mistake(name, right[name]) == ""
    assert "no such verifier" in await pool.check_reference("maths", "2")
    await pool.stop()


def test_a_reference_that_cannot_be_read_in_time_is_refused() -> None:
    with ReferenceChecker(build_registry(VerifyConfig(), []), 1.0) as mistake:
        assert "longer than 1 s" in mistake(
            "math", "\\prod_{n=1}^{99999998} \\sin(n x)^{n}!!" * 300
        )
        assert mistake("exact", "x") == ""
