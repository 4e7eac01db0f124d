"""The verifier ``math``: Math-Verify, kept from being talked into a pass.

Importing this module imports sympy; only the worker process does.
"""

from __future__ import annotations

import logging
import re

import sympy  # type: ignore[import-untyped]
from math_verify import parse, verify
from sympy import Add, And, Basic, Equality, Mul, Number, Pow, Set, UnevaluatedExpr
from sympy.core.relational import Relational  # type: ignore[import-untyped]
from sympy.matrices import MatrixBase  # type: ignore[import-untyped]

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import check_exact, short
from opsd.daemon.verify.extract import NoAnswerError, extract_all
from opsd.daemon.verify.protocol import Finding, FunctionCheck

# It warns once that its own SIGALRM time-out is off: the pool kills the process instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)

SAME_SHARE = 1e-3
"""Two numbers, of which one is a decimal, differ by this share at most, however small they are."""

_ALTERNATIVES = re.compile(r"\b(?:or|either|maybe)\b", re.IGNORECASE)
_DOLLAR = re.compile(r"(?<!\\)\$")
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_LATEX_MARKS = ("\\(", "\\[", "\\boxed")

Parsed = list[Basic | MatrixBase | str]


def check_math(reference: str, text: str) -> Finding:
    """Compares expressions by mathematical value.

    The answer is the marked one (see ``extract``; boxes joined by commas or "and" are one answer
    with several parts) or, without one, what Math-Verify finds last in the text. Beyond
    Math-Verify, which compares the answer with the reference:

    - It is asked the other way round too, with the answer as the gold. What passes in one direction
      only is let through in two forms that its own cases have: the reference is a relation and the
      answer the set of its solutions, or the answer is an equation that ends in the reference
      ("61-40 = 21"). Two equations without a solution are the same to it, and not to us.
    - Alternatives ("1 or 2") are no answer unless the reference has them or is a set.
    - Where the reference is a number, so must the answer be (a fraction, a decimal, a per cent, a
      power): repeating the problem's own sum, "61-40-19" for 2, is not solving it.
    - Where one side is a decimal, Math-Verify compares at six digits after the point; so that 0 is
      not 3·10⁻⁷, the values must agree to SAME_SHARE besides.
    """
    wanted = _parsed_reference(reference)
    if not wanted:
        return VerdictKind.ERROR, f"the reference {short(reference)} cannot be read as mathematics"
    try:
        answer = extract_all(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    has_alternatives = _ALTERNATIVES.search(reference) or isinstance(wanted[0], Set)
    if answer.marked and _ALTERNATIVES.search(answer.text) and not has_alternatives:
        return VerdictKind.FAIL, f"no answer: {short(answer.text)} names alternatives"
    if check_exact(reference, answer.text)[0] is VerdictKind.PASS:
        return VerdictKind.PASS, f"{short(answer.text)} is the reference itself"
    given = _parsed(_as_latex(answer.text) if answer.marked else answer.text)
    if not given:
        return VerdictKind.FAIL, f"no answer: {short(answer.text)} cannot be read as mathematics"
    shown = short(str(given[-1]))
    if _is_number(wanted[0]) and not _is_computed(given[0]):
        return VerdictKind.FAIL, f"no answer: {shown} is left uncomputed"
    if not _verify(wanted, given):
        return VerdictKind.FAIL, f"{shown} ≠ {short(reference)}"
    objection = _objection(wanted, given)
    if objection:
        return VerdictKind.FAIL, f"{shown} {objection}, which is not {short(reference)}"
    return VerdictKind.PASS, f"{shown} = {short(reference)}"


def math_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    if _parsed_reference(reference):
        return ""
    return f"{short(reference)} cannot be read as mathematics; write an expression or LaTeX"


def warm_up() -> None:
    """Compiles the grammars once, before the first pair waits for them."""
    check_math("\\frac{1}{2}", "Answer: $0.5$")


def _verify(gold: Parsed, answer: Parsed) -> bool:
    # Off: the pool's own time-out ends a comparison that does not end.
    return bool(verify(gold, answer, timeout_seconds=None))


def _objection(wanted: Parsed, given: Parsed) -> str:
    """What Math-Verify overlooked in an answer that it passes; "" where it is right."""
    gold, answer = wanted[0], given[0]
    if _is_far(gold, answer):
        return "is another number"
    if _is_contradiction(answer) and not _is_contradiction(gold):
        return "holds for nothing"
    if gold == answer or _verify(given, wanted):
        return ""
    solves = _is_relation(gold) and isinstance(_right_side(answer), Set)
    ends_in_it = _is_equation(answer) and not _is_relation(gold)
    return "" if solves or ends_in_it else "says more or less than it"


def _is_far(gold: object, answer: object) -> bool:
    if isinstance(gold, Equality) and isinstance(answer, Equality):
        return False  # one may be the other's multiple
    first, second = (_float(_right_side(side)) for side in (gold, answer))
    if first is None or second is None:
        return False
    return abs(first - second) > SAME_SHARE * abs(first)


def _right_side(value: object) -> object:
    while isinstance(value, Equality):
        value = value.rhs
    return value


def _float(value: object) -> float | None:
    if not (isinstance(value, Basic) and getattr(value, "is_number", False)):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_relation(value: object) -> bool:
    return isinstance(value, (Relational, And))


def _is_equation(value: object) -> bool:
    return isinstance(value, Equality) or (
        isinstance(value, And) and all(isinstance(part, Equality) for part in value.args)
    )


def _is_contradiction(value: object) -> bool:
    """Whether it is an equation that no value of its letters can make true."""
    if not isinstance(value, Equality) or not value.free_symbols:
        return False
    try:
        difference = sympy.simplify(value.lhs - value.rhs)
    except (TypeError, ValueError, AttributeError):
        return False
    return bool(difference.is_number and difference.is_nonzero)


def _parsed_reference(reference: str) -> Parsed:
    plain = reference.strip()
    # As Math-Verify reads it outside of LaTeX; in LaTeX a comma makes a pair.
    return _parsed(plain if _DECIMAL_COMMA.fullmatch(plain) else _as_latex(reference))


def _parsed(text: str) -> Parsed:
    found: Parsed = parse(text, parsing_timeout=None)
    return found


def _as_latex(text: str) -> str:
    flat = " ".join(text.split())
    if _DOLLAR.search(flat) or any(mark in flat for mark in _LATEX_MARKS):
        return flat
    return f"${flat}$"


def _is_number(value: object) -> bool:
    return isinstance(value, Number)


def _is_computed(value: object) -> bool:
    """Whether it is a number as one writes a result, with nothing left to be worked out."""
    value = _right_side(value)
    if not isinstance(value, Basic):
        return False
    if isinstance(value, Number):
        return True
    if isinstance(value, Mul):
        # Math-Verify keeps a per cent as an unevaluated factor of 1/100.
        parts = [part.args[0] if isinstance(part, UnevaluatedExpr) else part for part in value.args]
        factors = [part for part in parts if part not in (sympy.S.One, -sympy.S.One)]
        if len(factors) == 1:
            return _is_computed(factors[0])
        if len(factors) != 2:
            return False
        return _is_ratio(factors[0], factors[1]) or _is_ratio(factors[1], factors[0])
    if isinstance(value, Pow):
        return all(isinstance(part, Number) or _is_computed(part) for part in value.args)
    if isinstance(value, sympy.FiniteSet) and len(value.args) == 1:
        return _is_computed(value.args[0])
    return False


def _is_ratio(number: Basic, factor: Basic) -> bool:
    """a · b⁻¹, a · 10ᵏ and a · 1/100."""
    if not _is_computed(number) or isinstance(number, (Add, Mul)):
        return False
    if isinstance(factor, Pow):
        base, exponent = factor.args
        return isinstance(base, Number) and (exponent == -1 or base == 10)
    return bool(factor == sympy.Rational(1, 100))


MATH = FunctionCheck(check_math, math_mistake)
