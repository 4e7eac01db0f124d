"""A problem's text as words, numbers and expressions that can be compared."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from opsd.daemon.collect.hygiene.lexicon import (
    FUNCTION_WORDS,
    IRREGULAR,
    PHRASES,
    STOPWORDS,
    synonyms,
)

NUMBER = "#"
"""Stands for every number in a skeleton."""

_TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*"  # a number
    r"|[^\W\d_]+(?:['’][^\W\d_]+)?"  # a word
    r"|[-+*/=^%<>()√×÷−±≤≥≠]"
)
_THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_KEYWORD_LABEL = re.compile(
    r"^\W*(?:q|question|problem|exercise|ex|task|item|example|no|nr|#)\s*[.#:]?\s*"
    r"\d{1,4}(?:\.\d{1,3})?\s*(?:[\]).:\-–—]+|\n|(?=\s[^\W\d]))\s*",
    re.IGNORECASE,
)
_BARE_LABEL = re.compile(r"^\s*(?:[\[(]\s*\d{1,4}\s*[\])]|\d{1,4}\s*[\]).:])\s+(?=[^\W\d]|[\"'“])")
_LETTER_LABEL = re.compile(r"(?:(?<=\s)|^)(?:\(\s*[a-h]\s*\)|[a-h]\s*\))\s*", re.IGNORECASE)
_LINE_LABEL = re.compile(
    r"^[ \t]*(?:\(?(?:[a-h]|[1-9]\d?|i{1,3}|iv|v)[).:]|[-*•])[ \t]+", re.IGNORECASE | re.MULTILINE
)
_SENTENCE_END = re.compile(r"(?<=[.!?:;])(?=\s)|\n+")
_OPERATORS = frozenset("-+*/=^%<>×÷−±≤≥≠√")
_BINARY = frozenset("+-*/=^<>≤≥≠")
_SAME_OPERATOR = {"×": "*", "÷": "/", "−": "-"}
_UNIT_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_UNITS = {word: n for n, word in enumerate(_UNIT_WORDS.split())}
_TENS = {word: 10 * n for n, word in enumerate(_TENS_WORDS.split(), start=2)}
_PHRASES = dict(PHRASES)
_PHRASE = re.compile("|".join(rf"\b{re.escape(phrase)}\b" for phrase in _PHRASES))
_DOUBLED = re.compile(r"([^aeiouyls])\1$")
_LOST_E = re.compile(r"[^aeiouwxy][aeiou][^aeiouwxy]")
_MIN_STEM = 3


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence. ``stems`` has all words, numbers as their digits; ``concepts`` the words that
    carry meaning, synonyms made one."""

    stems: tuple[str, ...]
    concepts: tuple[str, ...]
    numbers: tuple[str, ...]
    spelled: tuple[str, ...]  # those of the numbers that are small and written as words
    expressions: tuple[str, ...]
    is_question: bool


@dataclass(frozen=True, slots=True)
class Analysis:
    """A whole text: its sentences, and the same four over all of them."""

    sentences: tuple[Sentence, ...]
    stems: tuple[str, ...]
    concepts: tuple[str, ...]
    numbers: tuple[str, ...]
    expressions: tuple[str, ...]

    def slots(self) -> list[set[str]]:
        """The concepts after each number, up to the next one."""
        found: list[set[str]] = []
        for stem in self.stems:
            if stem[0].isdigit():
                found.append(set())
            elif found and stem not in _STOP_STEMS:
                # "finds 3" tells the story, whatever "find" alone means.
                found[-1].add(_SYNONYMS.get(stem, stem))
        return found

    def skeleton(self) -> tuple[str, ...]:
        """The stems with every number masked."""
        return masked(self.stems)


def masked(stems: tuple[str, ...]) -> tuple[str, ...]:
    """With ``NUMBER`` for every number."""
    return tuple(NUMBER if stem[0].isdigit() else stem for stem in stems)


def visible(text: str) -> str:
    """Without format characters (zero-width spaces, soft hyphens, direction marks)."""
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) != "Cf")


def without_labels(text: str) -> str:
    """Without what only numbers a problem or its options: "Q12.", "7)", "(b)"."""
    shorter = _KEYWORD_LABEL.sub("", text, count=1)
    shorter = _BARE_LABEL.sub("", shorter, count=1)
    shorter = _LETTER_LABEL.sub(" ", _LINE_LABEL.sub("", shorter))
    return shorter if shorter.strip() else text


def analyse(text: str) -> Analysis:
    """Cost: linear in the text."""
    folded = unicodedata.normalize("NFKC", visible(text))
    plain = _PHRASE.sub(_one_word, without_labels(folded).casefold())
    made = tuple(
        sentence for part in _SENTENCE_END.split(plain) if (sentence := _sentence(part)) is not None
    )
    return Analysis(
        sentences=made,
        stems=tuple(stem for one in made for stem in one.stems),
        concepts=tuple(concept for one in made for concept in one.concepts),
        numbers=tuple(number for one in made for number in one.numbers),
        expressions=tuple(found for one in made for found in one.expressions),
    )


def is_function_word(stemmed: str) -> bool:
    """Whether a stem holds a sentence together and says nothing by itself."""
    return stemmed in _STOP_STEMS


def concept(word: str) -> str:
    """The stem of a word, or the one that stands for its synonyms."""
    return _concept(word)


@lru_cache(1 << 16)
def stem(word: str) -> str:
    """Strips the endings that grammar adds: plural, past, participle, possessive."""
    word = word.split("'")[0].split("’")[0] or word
    if word in IRREGULAR:
        return IRREGULAR[word]
    if len(word) <= _MIN_STEM:
        return word
    if word.endswith("ies") and len(word) > _MIN_STEM + 1:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= _MIN_STEM:
            word = word[: -len(ending)]
            if _DOUBLED.search(word):
                word = word[:-1]
            elif _LOST_E.fullmatch(word):
                word += "e"
            break
    if word.endswith("i") and len(word) > _MIN_STEM:
        word = word[:-1] + "y"
    # "same" is not "Sam".
    return word[:-1] if word.endswith("e") and len(word) > _MIN_STEM + 1 else word


def number_value(digits: str) -> str:
    """One spelling for one number: "1,500" is "1500", "57.60" is "57.6"."""
    if _THOUSANDS.fullmatch(digits):
        digits = digits.replace(",", "")
    if digits.count(".") == 1 and "," not in digits:
        digits = digits.rstrip("0").rstrip(".")
    return digits.lstrip("0") or "0"


@lru_cache(1 << 16)
def _concept(word: str) -> str:
    if word in STOPWORDS:
        return ""
    stemmed = stem(word)
    if stemmed in _STOP_STEMS:
        return ""
    return _SYNONYMS.get(word) or _SYNONYMS.get(stemmed) or stemmed


_STOP_STEMS = frozenset(stem(word) for word in FUNCTION_WORDS)
_SYNONYMS = synonyms(stem)


def _one_word(match: re.Match[str]) -> str:
    return _PHRASES[match[0]]


def _sentence(text: str) -> Sentence | None:
    tokens = _TOKEN.findall(text)
    if not tokens:
        return None
    stems: list[str] = []
    concepts: list[str] = []
    numbers: list[str] = []
    spelled: list[str] = []
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        if token[0].isdigit():
            value = number_value(token)
        elif token in _UNITS or token in _TENS:
            value, position = _spelled(tokens, position - 1)
        elif token == "dozen":
            value = "12"
        elif token[0].isalpha():
            stems.append(stem(token))
            if len(token) > 1 and (meaning := _concept(token)):
                concepts.append(meaning)
            continue
        else:
            continue
        stems.append(value)
        # "one" counts nothing in most sentences that it stands in.
        if token != "one":
            numbers.append(value)
            if token in _UNITS and len(value) < 3:
                spelled.append(value)
    return Sentence(
        stems=tuple(stems),
        concepts=tuple(concepts),
        numbers=tuple(numbers),
        spelled=tuple(spelled),
        expressions=_expressions(tokens),
        is_question="?" in text,
    )


def _spelled(tokens: list[str], start: int) -> tuple[str, int]:
    """The value of a number in words that begins at ``start``, and where it ends."""
    value, position = 0, start
    if tokens[position] in _TENS:
        value = _TENS[tokens[position]]
        position += 1
        if position < len(tokens) and tokens[position] == "-":
            position += 1
        unit = _UNITS.get(tokens[position], 0) if position < len(tokens) else 0
        if not 0 < unit < 10:
            return str(value), position
        return str(value + unit), position + 1
    value = _UNITS[tokens[position]]
    position += 1
    for word, factor in (("hundred", 100), ("thousand", 1000)):
        if position < len(tokens) and tokens[position] == word:
            value, position = value * factor, position + 1
    return str(value), position


def _expressions(tokens: list[str]) -> tuple[str, ...]:
    """Runs of numbers, variables and operators that join at least two operands."""
    found: list[str] = []
    run: list[str] = []
    for token in [*tokens, "end"]:
        if token[0].isdigit():
            run.append(number_value(token))
        elif token in _OPERATORS or token in "()" or (len(token) == 1 and token.isalpha()):
            run.append(_SAME_OPERATOR.get(token, token))
        else:
            found.extend(_expression(run))
            run = []
    return tuple(found)


def _expression(run: list[str]) -> list[str]:
    while run and (run[-1] in _BINARY or run[-1] in ("(", "a")):
        run = run[:-1]
    while run and (run[0] in ("a", ")", "*", "/", "=", "+") or (run[0] == "-" and len(run) < 2)):
        run = run[1:]
    operands = sum(token not in _OPERATORS and token not in "()" for token in run)
    if operands < 2 or not _BINARY.intersection(run):
        return []
    return ["".join(run)]
