"""The verifier ``math``: Math-Verify, kept from being talked into a pass.

Importing this module imports sympy; only the worker process does.
"""

from __future__ import annotations

import logging
import re

import sympy  # type: ignore[import-untyped]
from math_verify import parse, verify
from sympy import Add, Basic, Equality, Mul, Number, Pow, UnevaluatedExpr

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import Finding, check_exact, short
from opsd.daemon.verify.extract import NoAnswerError, extract

# It warns once that its own SIGALRM time-out is off: the pool kills the process instead.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_ALTERNATIVES = re.compile(r"\b(?:or|either|maybe)\b", re.IGNORECASE)


def check_math(reference: str, text: str) -> Finding:
    """Compares expressions by mathematical value.

    The answer is the marked one (see ``extract``) or, without one, what Math-Verify finds last in
    the text. Beyond Math-Verify: alternatives ("1 or 2") are no answer unless the reference has
    them or is a set; and where the reference is a number, so must the answer be (a fraction, a
    decimal, a per cent, a power): repeating the problem's own sum, "61-40-19" for 2, is not solving
    it. Where one side is a decimal, Math-Verify compares at six digits after the point.
    """
    wanted = _parsed(_as_latex(reference))
    if not wanted:
        return VerdictKind.ERROR, f"the reference {short(reference)} cannot be read as mathematics"
    try:
        answer = extract(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    has_alternatives = _ALTERNATIVES.search(reference) or isinstance(wanted[0], sympy.Set)
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
    # Off: the pool's own time-out ends a comparison that does not end.
    same = verify(wanted, given, timeout_seconds=None)
    kind = VerdictKind.PASS if same else VerdictKind.FAIL
    return kind, f"{shown} {'=' if same else '≠'} {short(reference)}"


def warm_up() -> None:
    """Compiles the grammars once, before the first pair waits for them."""
    check_math("\\frac{1}{2}", "Answer: $0.5$")


def _parsed(text: str) -> list[Basic | str]:
    found: list[Basic | str] = parse(text, parsing_timeout=None)
    return found


def _as_latex(text: str) -> str:
    flat = " ".join(text.split())
    return flat if "$" in flat or "\\(" in flat or "\\[" in flat else f"${flat}$"


def _is_number(value: Basic | str) -> bool:
    return bool(isinstance(value, Number))


def _is_computed(value: Basic | str) -> bool:
    """Whether it is a number as one writes a result, with nothing left to be worked out."""
    while isinstance(value, Equality):
        value = value.rhs
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
