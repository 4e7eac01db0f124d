"""The verifiers ``numeric`` and ``exact``, and what a check gives back."""

from __future__ import annotations

import unicodedata
from fractions import Fraction

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.extract import NoAnswerError, extract
from opsd.daemon.verify.numbers import Number, last_number, read_number

MIN_ROUNDED_DECIMALS = 3
EVIDENCE_CHARS = 240

Finding = tuple[VerdictKind, str]


def check_numeric(reference: str, text: str) -> Finding:
    """Compares numbers as exact fractions.

    The answer is the marked one (see ``extract``), which must then be one number and nothing else
    but a unit; "1 or 2" is no answer. Without a marked answer it is the last number of the text.

    Tolerance: none, but for a number without a finite decimal expansion (1/3). A decimal with at
    least three digits after the point stands for it when it is that number rounded to those digits.
    A per cent sign on one side only counts as hundredths or as a mere unit, whichever agrees.
    """
    wanted = read_number(reference)
    if wanted is None:
        return VerdictKind.ERROR, f"the reference {short(reference)} is not a number"
    try:
        answer = extract(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    if answer.marked:
        given, shown = read_number(answer.text), answer.text
    else:
        given, shown = last_number(answer.text)
    if given is None:
        return VerdictKind.FAIL, f"no answer: {short(shown)} is not one number"
    kind = VerdictKind.PASS if equal(wanted, given) else VerdictKind.FAIL
    sign = "=" if kind is VerdictKind.PASS else "≠"
    return kind, f"{short(str(given))} {sign} {short(str(wanted))}"


def equal(wanted: Number, given: Number) -> bool:
    if wanted.is_percent == given.is_percent:
        return _same(wanted.value, given.value, wanted.decimals, given.decimals)
    percent, other = (wanted, given) if wanted.is_percent else (given, wanted)
    return percent.value == other.value or percent.value / 100 == other.value


def _same(
    wanted: Fraction, given: Fraction, wanted_decimals: int | None, given_decimals: int | None
) -> bool:
    if wanted == given:
        return True
    for endless, rounded, decimals in (
        (wanted, given, given_decimals),
        (given, wanted, wanted_decimals),
    ):
        if (
            decimals is not None
            and decimals >= MIN_ROUNDED_DECIMALS
            and rounded != 0
            and not _is_finite_decimal(endless)
            and abs(endless - rounded) < Fraction(1, 2 * 10**decimals)
        ):
            return True
    return False


def _is_finite_decimal(value: Fraction) -> bool:
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def check_exact(reference: str, text: str) -> Finding:
    """Compares characters, case and all, after folding white space and Unicode composition.

    The answer is the marked one or, without one, the whole text. One full stop at its end is
    overlooked unless the reference has one too.
    """
    wanted = _folded(reference)
    if not wanted:
        return VerdictKind.ERROR, "the reference is empty"
    try:
        given = _folded(extract(text).text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    if given == wanted or given.removesuffix(".") == wanted:
        return VerdictKind.PASS, f"{short(given)} = {short(wanted)}"
    return VerdictKind.FAIL, f"{short(given)} ≠ {short(wanted)}"


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def short(text: str) -> str:
    """Quoted, cut in the middle of a sentence about it."""
    limit = EVIDENCE_CHARS // 3
    return repr(text if len(text) <= limit else text[:limit] + "…")
