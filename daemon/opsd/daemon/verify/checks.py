"""The verifiers ``numeric`` and ``exact``."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.extract import NoAnswerError, extract
from opsd.daemon.verify.numbers import Number, last_number, read_number
from opsd.daemon.verify.protocol import Finding, FunctionCheck
from opsd.daemon.verify.references import BadReferenceError, json_object, text_of
from opsd.daemon.verify.units import Unit, read_unit

MIN_ROUNDED_DECIMALS = 3
SHORT_CHARS = 80

_NUMERIC_KEYS = ("value", "unit", "rel_tolerance", "abs_tolerance")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A reference of ``numeric``; ``unit`` is None where the answer's unit does not matter."""

    number: Number
    unit: Unit | None
    tolerance: Fraction | None


def read_wanted(reference: str) -> Wanted:
    """Raises BadReferenceError."""
    given = json_object(reference, _NUMERIC_KEYS)
    if given is None:
        number = read_number(reference)
        if number is None:
            raise BadReferenceError(f"{short(reference)} is not a number; write for example 12.5 m")
        return Wanted(number, read_unit(number.unit), None)
    number = read_number(text_of(given, "value"))
    if number is None:
        raise BadReferenceError(f"'value' {short(text_of(given, 'value'))} is not a number")
    number = replace(number, unit=text_of(given, "unit", number.unit))
    unit = read_unit(number.unit)
    if unit is None and "unit" in given:
        raise BadReferenceError(
            f"'unit' {short(text_of(given, 'unit'))} is not known; leave it out, and units do not "
            "matter"
        )
    relative, absolute = (_tolerance(given, key) for key in ("rel_tolerance", "abs_tolerance"))
    bounds = [absolute] if absolute is not None else []
    if relative is not None:
        bounds.append(relative * abs(number.value))
    return Wanted(number, unit, max(bounds) if bounds else None)


def _tolerance(given: dict[str, object], key: str) -> Fraction | None:
    if key not in given:
        return None
    number = read_number(text_of(given, key))
    if number is None or number.value < 0 or number.unit:
        raise BadReferenceError(f"{key!r} must be a number of at least 0, in quotes")
    return number.value / 100 if number.is_percent else number.value


def numeric_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    try:
        read_wanted(reference)
    except BadReferenceError as error:
        return str(error)
    return ""


def check_numeric(reference: str, text: str) -> Finding:
    """Compares numbers as exact fractions.

    The answer is the marked one (see ``extract``), which must then be one number and nothing else
    but a unit; "1 or 2" is no answer. Without a marked answer it is the last number of the text.

    Tolerance: what the reference allows; else none, but for a number without a finite decimal
    expansion (1/3). A decimal with at least three digits after the point stands for it when it is
    that number rounded to those digits. A per cent sign on one side only counts as hundredths or as
    a mere unit, whichever agrees.

    A reference with a unit of ``units`` wants it: an answer in another unit is converted, one
    without is taken to be in it, one of another dimension or in unknown words is wrong.
    """
    try:
        wanted = read_wanted(reference)
    except BadReferenceError as error:
        return VerdictKind.ERROR, f"the reference: {error}"
    try:
        answer = extract(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    if answer.marked:
        given, shown = read_number(answer.text), answer.text
    else:
        given, shown = last_number(answer.text)
        if given is not None and read_unit(given.unit) is None:
            given = replace(given, unit="")  # the next word of the sentence
    if given is None:
        return VerdictKind.FAIL, f"no answer: {short(shown)} is not one number"
    converted = _converted(wanted, given)
    if converted is None:
        return VerdictKind.FAIL, f"{_shown(given)} ≠ {_shown(wanted.number)}: another unit"
    if wanted.tolerance is None:
        same = equal(wanted.number, converted)
    else:
        same = _is_near(wanted, converted)
    kind = VerdictKind.PASS if same else VerdictKind.FAIL
    return kind, f"{_shown(given)} {'=' if same else '≠'} {_shown(wanted.number)}"


def _shown(number: Number) -> str:
    return short(f"{number} {number.unit}".strip())


def _converted(wanted: Wanted, given: Number) -> Number | None:
    if wanted.unit is None or not given.unit:
        return given
    unit = read_unit(given.unit)
    value = unit.to(wanted.unit, given.value) if unit is not None else None
    if value is None:
        return None
    # Digits were counted in another unit, so they say nothing about rounding any more.
    exact = value == given.value
    return replace(given, value=value, decimals=given.decimals if exact else None)


def _is_near(wanted: Wanted, given: Number) -> bool:
    assert wanted.tolerance is not None, "asked for"
    values = [given.value]
    if given.is_percent != wanted.number.is_percent:
        values.append(given.value / 100 if given.is_percent else given.value * 100)
    return any(abs(value - wanted.number.value) <= wanted.tolerance for value in values)


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
    return repr(text if len(text) <= SHORT_CHARS else text[:SHORT_CHARS] + "…")


def exact_mistake(reference: str) -> str:
    """Nothing: any text can be compared with."""
    return ""


NUMERIC = FunctionCheck(check_numeric, numeric_mistake)
EXACT = FunctionCheck(check_exact, exact_mistake)
