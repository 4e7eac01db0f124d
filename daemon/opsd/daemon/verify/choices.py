"""The verifier ``choice``: one letter of several, or the text that stands behind it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from opsd.daemon.types.pairs import VerdictKind
from opsd.daemon.verify.checks import short
from opsd.daemon.verify.extract import NoAnswerError, extract
from opsd.daemon.verify.protocol import Finding, FunctionCheck
from opsd.daemon.verify.references import BadReferenceError, json_object, text_of

LETTERS = "ABCDEFGHIJ"
DEFAULT_LETTERS = "ABCDE"

_KEYS = ("answer", "options")
_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|mbox)\s*\{([^{}]*)\}")
_NOISE = re.compile(r"[*_`$]|\\[()\[\]]|\\[,;! ]")
_LEADING = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is|:)?\s*)+", re.I
)
# The letter is followed by nothing, or by a sign that sets it apart from what follows.
_LETTER = re.compile(r"\(?\s*(?P<letter>[A-Ja-j])\s*(?:(?P<sign>[).:])\s*(?P<rest>.*))?", re.DOTALL)
_SENTENCE = re.compile(
    r"(?:answer|option|choice)\s+(?:is|would be)\s*:?\s*(?P<answer>\(?[A-J](?![A-Za-z])[^\n]*)",
    re.I,
)


@dataclass(frozen=True, slots=True)
class Choice:
    """``options`` is empty where only letters are known."""

    answer: str
    options: dict[str, str]

    @property
    def letters(self) -> str:
        return "".join(self.options) or DEFAULT_LETTERS


def read_choice(reference: str) -> Choice:
    """Raises BadReferenceError."""
    given = json_object(reference, _KEYS)
    if given is None:
        letter = reference.strip().strip("().").upper()
        if len(letter) != 1 or letter not in LETTERS:
            raise BadReferenceError(
                f"{short(reference)} is no letter from A to J; write for example B, or "
                '{"answer": "B", "options": {"A": "red", "B": "blue"}}'
            )
        return Choice(letter, {})
    options = _options(given.get("options", {}))
    letter = text_of(given, "answer").strip().upper()
    if letter not in (options or LETTERS) or len(letter) != 1:
        known = ", ".join(options) or "A to J"
        raise BadReferenceError(f"'answer' {short(letter)} is not among the options ({known})")
    return Choice(letter, options)


def _options(given: object) -> dict[str, str]:
    if isinstance(given, list) and len(given) <= len(LETTERS):
        given = dict(zip(LETTERS, given, strict=False))
    if not isinstance(given, dict) or len(given) > len(LETTERS):
        raise BadReferenceError(
            "'options' must be an object from letters to texts, or a list of texts"
        )
    found: dict[str, str] = {}
    for letter, text in given.items():
        if letter not in tuple(LETTERS) or not isinstance(text, str) or not text.strip():
            raise BadReferenceError(
                f"'options' has {short(str(letter))}; letters are A to J, texts not empty"
            )
        found[letter] = _plain(text)
    if len(set(found.values())) < len(found):
        raise BadReferenceError("'options' has one text twice; they must differ")
    return found


def choice_mistake(reference: str) -> str:
    """What is wrong with it; "" where nothing is."""
    try:
        read_choice(reference)
    except BadReferenceError as error:
        return str(error)
    return ""


def check_choice(reference: str, text: str) -> Finding:
    """Accepts "B", "(B)", "B.", "b)", "B) blue" and, where options are given, "blue".

    The answer is the marked one or, without one, the last line of the text: alone, or as "the
    answer is B". A letter with another option's text behind it is no answer, nor are two letters.
    """
    try:
        choice = read_choice(reference)
    except BadReferenceError as error:
        return VerdictKind.ERROR, f"the reference: {error}"
    try:
        answer = extract(text)
    except NoAnswerError as error:
        return VerdictKind.FAIL, f"no answer: {error}"
    shown = answer.text if answer.marked else answer.text.splitlines()[-1]
    given = _chosen(choice, shown)
    if not given and not answer.marked:
        given = _in_sentence(choice, shown)
    if not given:
        return (
            VerdictKind.FAIL,
            f"no answer: {short(shown)} is not one of {', '.join(choice.letters)}",
        )
    same = given == choice.answer
    kind = VerdictKind.PASS if same else VerdictKind.FAIL
    return kind, f"{short(given)} {'=' if same else '≠'} {short(choice.answer)}"


def _chosen(choice: Choice, answer: str) -> str:
    """The letter meant; "" where none is, or more than one."""
    plain = _plain(answer)
    named = [letter for letter, text in choice.options.items() if text == plain]
    if named:
        return named[0]
    words = _LEADING.sub("", _cleaned(answer), count=1).strip()
    match = _LETTER.fullmatch(words)
    if match is None:
        return ""
    letter, rest = match["letter"].upper(), _plain(match["rest"] or "")
    if letter not in choice.letters:
        return ""
    if not rest:
        return letter
    return letter if choice.options.get(letter) == rest else ""


def _in_sentence(choice: Choice, line: str) -> str:
    found = [match["answer"] for match in _SENTENCE.finditer(_cleaned(line))]
    return _chosen(choice, found[-1]) if found else ""


def _cleaned(text: str) -> str:
    return _NOISE.sub("", _WRAPPED.sub(r"\1", text)).strip()


def _plain(text: str) -> str:
    return " ".join(_cleaned(text).casefold().split()).rstrip(".")


CHOICE = FunctionCheck(check_choice, choice_mistake)
