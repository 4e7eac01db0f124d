"""Code against tests that it can neither see nor answer for."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.code import code_of, python_mistake
from opsd.daemon.verify.extract import NoAnswerError
from opsd.daemon.verify.protocol import Finding
from opsd.daemon.verify.sandbox import Sandbox
from opsd.daemon.verify.solutions import PythonRunner

PASS, FAIL, ERROR = VerdictKind.PASS, VerdictKind.FAIL, VerdictKind.ERROR
Judge = Callable[[Mapping[str, object], str], Awaitable[Finding]]

ADD = {"tests": "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'"}
STACK = {
    "tests": (
        "import unittest, solution\n"
        "class StackTest(unittest.TestCase):\n"
        "    def test_order(self):\n"
        "        stack = solution.Stack()\n"
        "        stack.push(3); stack.push([1, (2, {4})])\n"
        "        self.assertEqual(stack.pop(), [1, (2, {4})])\n"
        "        self.assertEqual(len(stack), 1)\n"
        "        self.assertEqual(list(stack), [3])\n"
        "    def test_empty(self):\n"
        "        with self.assertRaises(solution.Empty): solution.Stack().pop()\n"
        "        with self.assertRaises(IndexError): solution.Stack().pop()\n"
        "    def test_callback(self):\n"
        "        self.assertEqual(solution.apply(lambda x: x + 1, 2), 3)\n"
        "        with self.assertRaises(Exception): solution.apply(lambda x: 1 / 0, 2)\n"
    )
}
GOOD_STACK = (
    "class Empty(IndexError): pass\n"
    "class Stack:\n"
    "    def __init__(self): self.items = []\n"
    "    def push(self, item): self.items.append(item)\n"
    "    def pop(self):\n"
    "        if not self.items: raise Empty('nothing')\n"
    "        return self.items.pop()\n"
    "    def __len__(self): return len(self.items)\n"
    "    def __iter__(self): return iter(self.items)\n"
    "def apply(function, value): return function(value)\n"
)


async def test_right_code_passes_and_wrong_code_says_where(judge: Judge) -> None:
    assert await judge(ADD, "def add(a, b): return a + b") == (PASS, "1 test passed")
    kind, evidence = await judge(ADD, "def add(a, b): return 3")
    assert (kind, evidence) == (FAIL, "AssertionError (line 2 of the tests)")
    assert await judge(STACK, f"Here:\n```python\n{GOOD_STACK}```\n") == (PASS, "3 tests passed")
    kind, evidence = await judge(STACK, GOOD_STACK.replace("items.pop()", "items.pop(0)"))
    assert kind is FAIL
    assert evidence.startswith("test_order: AssertionError: 3 != [1, (2, {4})]")
    assert "(line 6 of the tests)" in evidence


async def test_functions_and_check_are_tests_too(judge: Judge) -> None:
    functions = {"tests": "from solution import add\ndef test_add():\n    assert add(1, 2) == 3"}
    assert await judge(functions, "def add(a, b): return a + b") == (PASS, "1 test passed")
    assert (await judge(functions, "def add(a, b): return 4"))[0] is FAIL
    check = {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3", "entry": "add"}
    assert await judge(check, "def add(a, b): return a + b") == (PASS, "1 test passed")
    assert (await judge(check, "def add(a, b): return 4"))[0] is FAIL
    assert (await judge(check, "def sub(a, b): return 4"))[0] is FAIL
    skipped = {"tests": "import unittest\n@unittest.skip('no')\nclass T(unittest.TestCase):\n"
               "    def test_a(self): self.fail()"}  # fmt: skip
    assert await judge(skipped, "x = 1") == (ERROR, "no test was run")


FORGERIES = {
    "ends well": "import sys; sys.exit(0)",
    "ends at once": "import os; os._exit(0)",
    "ends when called": "import os\ndef add(a, b): os._exit(0)",
    "exits when called": "def add(a, b): raise SystemExit(0)",
    "equals everything": (
        "class All:\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "    def __bool__(self): return True\n"
        "def add(a, b): return All()"
    ),
    "an int that equals everything": (
        "class All(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def add(a, b): return All()"
    ),
    "a str that equals everything": (
        "class All(str):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
        "def add(a, b): return All()"
    ),
    "patches unittest and builtins": (
        "import unittest, builtins\n"
        "unittest.TestCase.run = lambda *a, **k: None\n"
        "unittest.TestCase.assertEqual = lambda *a: None\n"
        "builtins.AssertionError = ValueError\n"
        "builtins.all = builtins.any = lambda *a: True\n"
        "def add(a, b): return None\n"
        "def all(*a): return True\n"
        "def isinstance(*a): return True\n"
        "AssertionError = ValueError"
    ),
    "at exit": (
        "import atexit, os, json\n"
        "def claim():\n"
        "    for fd in range(3, 64):\n"
        "        line = json.dumps({'kind': 'pass', 'evidence': 'x'}) + '\\n'\n"
        "        try: os.write(fd, line.encode())\n"
        "        except OSError: pass\n"
        "atexit.register(claim)\n"
        "def add(a, b): claim()"
    ),
    "answers before it is asked": (
        "import os, json, struct\n"
        "for value in (3, 'ab'):\n"
        "    body = json.dumps(['ready', 1, ['add']]).encode()\n"
        "    for fd in range(3, 64):\n"
        "        try: os.write(fd, struct.pack('>I', len(body)) + body)\n"
        "        except OSError: pass\n"
    ),
    "prints the verdict": (
        'print(\'{"kind": "pass", "evidence": "1 test passed"}\', flush=True)\nprint(\'OK\')'
    ),
    "looks for the tests": (
        "import glob\n"
        "found = ''.join(open(path, errors='replace').read()\n"
        "                for path in glob.glob('/opsd/**/*.py', recursive=True))\n"
        "assert 'def add' not in found.replace('def add(a, b): return 3 if', '')\n"
        "def add(a, b): return 3 if 'add(1, 2)' + ' == 3' in found else None"
    ),
    "looks into its caller": (
        "import sys, gc\n"
        "def add(a, b):\n"
        "    frame = sys._getframe()\n"
        "    while frame:\n"
        "        for name, value in frame.f_globals.items():\n"
        "            if name == 'TESTS' or 'tests.py' in frame.f_code.co_filename: return 3\n"
        "        frame = frame.f_back\n"
        "    return None"
    ),
    "raises what is expected": "def add(a, b): raise AssertionError",
    "skips": "import unittest\ndef add(a, b): raise unittest.SkipTest('skipped')",
    "closes its pipes": "import os\nos.closerange(3, 64)\ndef add(a, b): return 3",
    "talks nonsense": (
        "import os\n"
        "for fd in range(3, 64):\n"
        "    try: os.write(fd, b'\\xff' * 100)\n"
        "    except OSError: pass\n"
    ),
    "is deep": "def add(a, b):\n    x = []\n    for _ in range(50_000): x = [x]\n    return x",
    "is large": "def add(a, b): return 'x' * (100 << 20)",
    "recurs": "def add(a, b): return add(a, b)",
    "crashes": "import ctypes\ndef add(a, b): ctypes.string_at(0)",
    "is no code": "I cannot say.",
    "kills all": "import os, signal\ndef add(a, b): os.kill(-1, signal.SIGKILL)",
}


@pytest.mark.parametrize("name", FORGERIES)
async def test_no_forgery_passes(judge: Judge, name: str) -> None:
    kind, evidence = await judge(ADD, FORGERIES[name])
    assert kind is FAIL, evidence
    assert evidence
    assert len(evidence) <= 400


async def test_more_forgeries_of_a_test_case(judge: Judge) -> None:
    """Members that are always there, and names that the tests use themselves."""
    tests = {
        "tests": (
            "import unittest\n"
            "class T(unittest.TestCase):\n"
            "    def test_all(self):\n"
            "        self.assertTrue(all(f(i) == i for i in range(3)))\n"
            "        self.assertIn(7, f([7]))\n"
            "        self.assertLess(f(1), 2)\n"
            "        self.assertAlmostEqual(f(1.5), 1.5)\n"
        )
    }
    assert (await judge(tests, "def f(x): return x"))[0] is PASS
    evil = (
        "class Evil:\n"
        "    def __contains__(self, x): return True\n"
        "    def __iter__(self): return self\n"
        "    def __next__(self): raise StopIteration\n"
        "    def __lt__(self, x): return True\n"
        "    def __sub__(self, x): return 0\n"
        "    __rsub__ = __sub__\n"
        "    def __eq__(self, x): return True\n"
        "    def __abs__(self): return 0\n"
        "    def __float__(self): return 1.5\n"
        "    def __hash__(self): return 0\n"
    )
    for value in ("Evil()", "x if x in (0, 1, 2) and x != 1.5 else Evil()",
                  "Evil() if x in (1, 1.5) else x"):  # fmt: skip
        assert (await judge(tests, evil + f"def f(x): return {value}"))[0] is FAIL
    names = {"tests": "assert sorted(f()) == [1, 2]\nassert len(f()) == 2"}
    assert (await judge(names, "def f(): return (2, 1)"))[0] is PASS
    claims = "def sorted(x): return [1, 2]\ndef len(x): return 2\ndef f(): return ()"
    assert (await judge(names, claims))[0] is FAIL
    shadow = (
        "all = any = len = isinstance = lambda *a: True\nclass unittest:\n    TestCase = object\n"
    )
    assert (await judge(tests, shadow + "def f(x): return None"))[0] is FAIL


async def test_code_that_hangs_fails_with_the_test_it_hung_in(sandbox: Sandbox) -> None:
    runner = PythonRunner(sandbox, timeout_s=6.0, output_bytes=1024, concurrency=1)
    tests = {"tests": "def test_it():\n    assert f() == 1\ndef test_other(): assert True"}
    kind, evidence = await runner.run(json.dumps(tests), "def f():\n    while True: pass")
    assert kind is FAIL
    assert "test_it" in evidence
    assert "took too long" in evidence or "process ended" in evidence
    asleep = "import time\ndef f(): time.sleep(1000)"
    kind, evidence = await runner.run(json.dumps(tests), asleep)
    assert (kind, "took too long" in evidence) == (FAIL, True)
    endless = "def f():\n    while True: yield 2"
    tests = {"tests": "def test_it():\n    for x in f(): assert x != 1"}
    kind, evidence = await runner.run(json.dumps(tests), endless)
    assert kind is FAIL


async def test_programs(judge: Judge) -> None:
    cases = {"cases": [{"stdin": "1 2\n", "stdout": "3\n"}, {"stdin": "5 6", "stdout": "11"}]}
    program = "print(sum(map(int, input().split())), end='  \\n\\n')"
    assert await judge(cases, program) == (PASS, "2 cases passed")
    assert await judge(cases, "print(3)") == (FAIL, "case 2 of 2: '3\\n' ≠ '11'")
    kind, evidence = await judge(cases, "print(3)\nraise ValueError('no')")
    assert (kind, evidence) == (FAIL, "case 1 of 2: ended with exit status 1: 'ValueError: no'")
    kind, evidence = await judge(cases, "import os; os.abort()")
    assert (kind, "signal 6" in evidence) == (FAIL, True)
    # Every case starts from nothing.
    spoiled = (
        "import os\n"
        "if os.path.exists('/tmp/mark'): print(11)\n"
        "else: open('/tmp/mark', 'w'); print(3)"
    )
    assert (await judge(cases, spoiled))[0] is FAIL


async def test_packages_of_the_operator_can_be_imported(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("def double(x): return 2 * x\n")
    (tmp_path / "helper.py").chmod(0o644)
    os.chmod(tmp_path, 0o755)
    runner = PythonRunner(
        sandbox, timeout_s=20.0, output_bytes=1024, concurrency=1, packages=(str(tmp_path),)
    )
    tests = json.dumps({"tests": "assert f(2) == 4"})
    code = "import helper\ndef f(x): return helper.double(x)"
    assert (await runner.run(tests, code))[0] is PASS
    program = json.dumps({"cases": [{"stdout": "4"}]})
    assert (await runner.run(program, "import helper; print(helper.double(2))"))[0] is PASS


async def test_tests_that_end_themselves_are_an_error(judge: Judge) -> None:
    for tests in ("import os\nassert f() == 1\nos._exit(0)", "assert f() == 1\nraise SystemExit"):
        kind, evidence = await judge({"tests": tests}, "def f(): return 1")
        assert (kind, bool(evidence)) == (ERROR, True)


@pytest.mark.parametrize(
    ("reference", "wrong"),
    [
        ("assert f() == 1", "no JSON object"),
        ({}, "either 'tests' or 'cases'"),
        ({"tests": "assert f()", "cases": []}, "either 'tests' or 'cases'"),
        ({"test": "assert f()"}, "'test' is no key"),
        ({"tests": ""}, "empty"),
        ({"tests": "assert f( == 1"}, "no Python"),
        ({"tests": "f()"}, "asserts nothing"),
        ({"tests": "def check(candidate):\n    assert candidate() == 1"}, "runs nothing"),
        ({"tests": "assert f() == 1", "entry": "f"}, "no check(candidate)"),
        ({"tests": 5}, "'tests' is a int"),
        ({"cases": []}, "1 to 64"),
        ({"cases": [{"stdin": "1"}]}, "cases[0]: 'stdout' is missing"),
        ({"cases": [{"stdin": 1, "stdout": "1"}]}, "cases[0]: 'stdin' is a int"),
        ({"cases": [{"stdout": "1", "args": []}]}, "cases[0] must be"),
        ({"cases": [{"stdout": "1"}]}, ""),
        (ADD, ""),
        (STACK, ""),
    ],
)
def test_references(reference: object, wrong: str) -> None:
    given = reference if isinstance(reference, str) else json.dumps(reference)
    assert wrong in python_mistake(given)
    assert bool(wrong) == bool(python_mistake(given))


def test_the_code_of_a_text() -> None:
    assert code_of("x = 1") == "x = 1"
    assert code_of("<think>```python\ny\n```</think>```py\nx = 1\n```") == "x = 1\n"
    assert code_of("```python\na\n```\nno:\n```python\nb\n```\n```text\nc\n```") == "b\n"
    for text in ("", "<think>x = 1", "```json\n{}\n```", "```python\n\n```"):
        with pytest.raises(NoAnswerError):
            code_of(text)
