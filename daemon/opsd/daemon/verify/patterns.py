"""The verifier ``regex``."""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.extract import NoAnswerError, extract
from opsd.daemon.verify.protocol import Finding, FunctionCheck
from opsd.daemon.verify.references import BadReferenceError, json_object, text_of

_KEYS = ("pattern", "flags")
_FLAGS = {"i": re.IGNORECASE, "m": re.MULTILINE, "s": re.DOTALL, "x": re.VERBOSE, "a": re.ASCII}


@lru_cache(maxsize=64)
def read_pattern(reference: str) -> re.Pattern[str]:
    """Raises BadReferenceError."""
    given = json_object(reference, _KEYS)
    pattern = reference if given is None or "pattern" not in given else text_of(given, "pattern")
    flags = 0
    for letter in text_of(given, "flags", "") if given else "":
        if letter not in _FLAGS:
            raise BadReferenceError(f"'flags' has {letter!r}; there are {', '.join(_FLAGS)}")
        flags |= _FLAGS[letter]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(pattern, flags)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadReferenceError(f"the pattern does not compile: {error}; mend it") from None


def regex_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    try:
        pattern = read_pattern(reference)
    except BadReferenceError as error:
        return str(error)
    if pattern.fullmatch("") is not None:
        return "the pattern matches nothing at all, so any empty answer; make it ask for something"
    return ""


def check_regex(reference: str, text: str) -> Finding:
    """The pattern must match the whole answer: the marked one or, without one, the whole text."""
    try:
        pattern = read_pattern(reference)
    except BadReferenceError as error:
        return VerdictKind.ERROR, f"the reference: {error}"
    try:
        answer = extract(text).text
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    matches = pattern.fullmatch(answer) is not None
    kind = VerdictKind.PASS if matches else VerdictKind.FAIL
    return (
        kind,
        f"{short(answer)} {'matches' if matches else 'does not match'} {short(pattern.pattern)}",
    )


REGEX = FunctionCheck(check_regex, regex_mistake)
