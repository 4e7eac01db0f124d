"""Code in a text, and the references of the verifier ``python``."""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.extract import NoAnswerError, after_thinking
from opsd.daemon.verify.inside.statements import defines_tests, runs_by_itself
from opsd.daemon.verify.protocol import Finding, FunctionCheck
from opsd.daemon.verify.references import BadReferenceError, text_of, wanted_object

MAX_CASES = 64
_KEYS = ("tests", "entry", "cases")
_CASE_KEYS = ("stdin", "stdout")
_EXAMPLE = '{"tests": "assert add(1, 2) == 3"} or {"cases": [{"stdin": "1 2", "stdout": "3"}]}'
_FENCE = re.compile(
    r"^[ \t]*```[ \t]*([A-Za-z0-9_+-]*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE
)
_PYTHON_FENCES = ("python", "py", "python3", "")


@dataclass(frozen=True, slots=True)
class Case:
    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class CodeTests:
    """Either unit tests (``tests``, with the function that their ``check`` wants) or cases."""

    tests: str = ""
    entry: str = ""
    cases: tuple[Case, ...] = ()


def read_tests(reference: str) -> CodeTests:
    """Raises BadReferenceError."""
    value = wanted_object(reference, _KEYS, _EXAMPLE)
    if ("tests" in value) == ("cases" in value):
        raise BadReferenceError(f"it needs either 'tests' or 'cases'; write for example {_EXAMPLE}")
    entry = text_of(value, "entry", "")
    if "tests" in value:
        tests = text_of(value, "tests")
        if not tests.strip():
            raise BadReferenceError("'tests' is empty; write assertions or unittest's test cases")
        return CodeTests(tests=tests, entry=entry)
    cases = value["cases"]
    if not isinstance(cases, list) or not 1 <= len(cases) <= MAX_CASES:
        raise BadReferenceError(f"'cases' must be a list of 1 to {MAX_CASES} objects")
    return CodeTests(cases=tuple(_case(number, case) for number, case in enumerate(cases)))


def _case(number: int, case: object) -> Case:
    if not isinstance(case, dict) or not set(case) <= set(_CASE_KEYS):
        raise BadReferenceError(f"cases[{number}] must be an object with stdin and stdout")
    try:
        return Case(text_of(case, "stdin", ""), text_of(case, "stdout"))
    except BadReferenceError as error:
        raise BadReferenceError(f"cases[{number}]: {error}") from None


def python_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    try:
        tests = read_tests(reference)
        if tests.tests:
            _check_tests(tests)
    except BadReferenceError as error:
        return str(error)
    return ""


def _check_tests(tests: CodeTests) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(tests.tests)
    except (SyntaxError, ValueError) as error:
        raise BadReferenceError(f"'tests' is no Python: {error}; mend it") from None
    if not any(_asserts(node) for node in ast.walk(tree)):
        raise BadReferenceError("'tests' asserts nothing, so any code would pass; write assertions")
    if tests.entry and not tests.entry.isidentifier():
        raise BadReferenceError("'entry' must be the name of a function of the solution")
    if tests.entry and not any(
        isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body
    ):
        raise BadReferenceError("'entry' is given, but 'tests' defines no check(candidate)")
    if not runs_by_itself(tree) and not defines_tests(tree, entry=bool(tests.entry)):
        raise BadReferenceError(
            "'tests' runs nothing; write assertions, functions called test…, unittest's test "
            "cases, or check(candidate) and the key 'entry'"
        )


def _asserts(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr.startswith(("assert", "fail"))
    return isinstance(node, ast.Assert)


def code_of(text: str) -> str:
    """The last fenced block of Python after the thinking; all of it where there is no fence.

    Raises NoAnswerError.
    """
    spoken = after_thinking(text)
    blocks = _FENCE.findall(spoken)
    code = [inner for language, inner in blocks if language.lower() in _PYTHON_FENCES]
    if code:
        spoken = code[-1]
    elif blocks:
        raise NoAnswerError("its code blocks are not Python")
    if not spoken.strip():
        raise NoAnswerError("it has no code")
    return spoken


def same_output(wanted: str, given: str) -> bool:
    """But for white space at the ends of lines and of the whole."""
    return _lines(wanted) == _lines(given)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _check_python(reference: str, text: str) -> Finding:
    return VerdictKind.ERROR, "code is run in sandboxes, not here"


PYTHON = FunctionCheck(_check_python, python_mistake)
