"""Which part of a text is its answer.

One rule for every verifier, in this order:

1. What stands before the last ``</think>`` is thought, not answer, and is left out. A text that
ends    inside its ``<think>`` has no answer.
2. The last ``\\boxed{…}``.
3. The last line of the form ``Answer: …`` (any case, ``Final answer: …`` too, Markdown emphasis
   allowed).
4. Neither: the verifier decides what a text without a marked answer means.

The last one counts and only that one: whoever writes several answers has given the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSWER_LINE = re.compile(
    r"[\s>#*_-]*(?:final\s+)?answer\s*[*_]*\s*:\s*[*_]*\s*(?P<answer>[^\n]*)", re.IGNORECASE
)
_BOXED = ("\\boxed", "\\fbox")
_EMPHASIS = "*_ \t\r"


@dataclass(frozen=True, slots=True)
class Answer:
    """``text`` is the marked answer, or all of the text where none is marked."""

    text: str
    marked: bool


class NoAnswerError(ValueError):
    """The text has no answer; the message says why."""


def extract(text: str) -> Answer:
    """Raises NoAnswerError."""
    spoken = _after_thinking(text)
    if not spoken.strip():
        raise NoAnswerError("the text is empty")
    boxed = _last_boxed(spoken)
    if boxed is not None:
        return _marked(boxed, "\\boxed{}")
    for line in reversed(spoken.splitlines()):
        match = _ANSWER_LINE.fullmatch(line)
        if match:
            return _marked(match["answer"].strip(_EMPHASIS), "'Answer:'")
    return Answer(spoken.strip(), marked=False)


def _marked(answer: str, mark: str) -> Answer:
    if not answer.strip():
        raise NoAnswerError(f"nothing stands in its {mark}")
    return Answer(answer.strip(), marked=True)


def _after_thinking(text: str) -> str:
    before, closed, after = text.rpartition("</think>")
    if closed:
        return after
    if "<think>" in before or "<think>" in after:
        raise NoAnswerError("the text ends inside its <think>")
    return text


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind(command) for command in _BOXED)
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0 or text[start:opening].strip() not in _BOXED:
        raise NoAnswerError("its last \\boxed has no braces")
    depth = 0
    for place in range(opening, len(text)):
        # An escaped brace is a character of the answer, as in \boxed{\{1,2\}}.
        if text[place] not in "{}" or text[place - 1] == "\\":
            continue
        depth += 1 if text[place] == "{" else -1
        if depth == 0:
            return text[opening + 1 : place]
    raise NoAnswerError("its last \\boxed is not closed")
