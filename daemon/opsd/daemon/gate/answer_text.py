"""How an answer is written: what can be counted in its text, whatever the problem."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\w+")
_REPEATED_WORDS = 4
_REFUSAL_CHARS = 200
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")


@dataclass(frozen=True, slots=True)
class TextMeasures:
    """See ``types.measured.AnswerRecord`` for each."""

    words: int
    markers: int
    repetition: float
    refusal: bool


class TextMeter:
    """Counts in answers.

    ``markers`` are words and phrases of doubt, found as whole words without regard to case, the
    longest first where one begins another. ``refusals`` make an answer a refusal where one of them
    stands, as whole words, in its first 200 characters after any ``</think>``: what is refused is
    refused at once, and a later "I'm sorry, that was wrong" is no refusal.
    """

    def __init__(self, *, markers: Sequence[str], refusals: Sequence[str]) -> None:
        self._markers = _phrases(markers)
        self._refusals = _phrases(refusals)

    def measure(self, text: str) -> TextMeasures:
        words = [word.casefold() for word in _WORD.findall(text)]
        plain = text.translate(_APOSTROPHES)
        beginning = plain.rpartition("</think>")[2].lstrip()[:_REFUSAL_CHARS]
        return TextMeasures(
            words=len(words),
            markers=len(self._markers.findall(plain)) if self._markers else 0,
            repetition=repetition(words),
            refusal=bool(self._refusals and self._refusals.search(beginning)),
        )


def repetition(words: Sequence[str]) -> float:
    """The share of the 4-grams that occurred before, in [0, 1]; 0 where there is none."""
    count = len(words) - _REPEATED_WORDS + 1
    if count < 1:
        return 0.0
    distinct = {tuple(words[start : start + _REPEATED_WORDS]) for start in range(count)}
    return (count - len(distinct)) / count


def _phrases(phrases: Sequence[str]) -> re.Pattern[str] | None:
    if not phrases:
        return None
    # White space within a phrase is any: a line may break there.
    choices = (
        r"\s+".join(re.escape(part) for part in phrase.translate(_APOSTROPHES).split())
        for phrase in sorted(phrases, key=len, reverse=True)
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(choices)})(?!\w)", re.IGNORECASE)
