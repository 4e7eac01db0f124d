"""Which part of a text is its answer.

One rule for every verifier, in this order:

1. What stands before the last ``</think>`` is thought, not answer, and is left out. A text that
   ends inside its ``<think>`` has no answer.
2. The last "final answer is …. I hope it is correct" behind every box.
3. The last ``\\boxed{…}``.
4. The last line of the form ``Answer: …`` (any case, ``Final answer: …`` too, Markdown emphasis
   allowed).
5. None of them: the verifier decides what a text without a marked answer means.

The last one counts and only that one: whoever writes several answers has given the last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSWER_LINE = re.compile(
    r"[\s>#*_-]*(?:final\s+)?answer\s*[*_]*\s*:\s*[*_]*\s*(?P<answer>[^\n]*)", re.IGNORECASE
)
_BOXED = ("\\boxed", "\\fbox")
_DOLLAR = re.compile(r"(?<!\\)\$")
_FILLER = r"""(?: \s | \$ | \\[()\[\]] | \\q?quad | [A-Za-z](?:_\{?\w{1,3}\}?)?\s*= )*"""
_JOINT = re.compile(
    rf"""{_FILLER} (?: [,;] | \band\b | \\text\s*\{{[^{{}}]*\band\b[^{{}}]*\}} )
        (?: [,;] | \band\b | {_FILLER} )""",
    re.VERBOSE,
)
_SENTENCE = re.compile(
    r"final\s+answer\s+is:?\s*(?P<answer>[^\n]{1,500}?)\.?\s*I\s+hope", re.IGNORECASE
)
_EMPHASIS = "*_ \t\r"


NO_ANSWER = "no answer: "
"""How the evidence of every verifier begins where the text has no answer to judge."""


@dataclass(frozen=True, slots=True)
class Answer:
    """``text`` is the marked answer, or all of the text where none is marked."""

    text: str
    marked: bool


class NoAnswerError(ValueError):
    """The text has no answer; the message says why."""


def extract(text: str) -> Answer:
    """Raises NoAnswerError."""
    return _extract(text, joined=False)


def extract_all(text: str) -> Answer:
    """The same, but boxes with nothing between them but commas, "and" and LaTeX's delimiters are
    one answer with several parts: ``\\boxed{1} and \\boxed{2}`` is ``1, 2``.

    Raises NoAnswerError.
    """
    return _extract(text, joined=True)


def _extract(text: str, *, joined: bool) -> Answer:
    spoken = after_thinking(text)
    if not spoken.strip():
        raise NoAnswerError("the text is empty")
    boxed = _last_boxed(spoken)
    sentence = _last_sentence(spoken, boxed[2] if boxed else 0)
    if sentence is not None:
        return _marked(sentence, "final answer")
    if boxed is not None:
        parts = [_inner(boxed[0])]
        while joined and (before := _last_boxed(spoken[: boxed[1]])) is not None:
            if _JOINT.fullmatch(spoken[before[2] : boxed[1]]) is None:
                break
            parts.insert(0, _inner(before[0]))
            boxed = before
        return _marked(", ".join(parts), "\\boxed{}")
    for line in reversed(spoken.splitlines()):
        match = _ANSWER_LINE.fullmatch(line)
        if match:
            return _marked(match["answer"].strip(_EMPHASIS), "'Answer:'")
    return Answer(spoken.strip(), marked=False)


def _last_sentence(spoken: str, start: int) -> str | None:
    found = None
    for match in _SENTENCE.finditer(spoken, start):
        found = match["answer"]
    return found


def _marked(answer: str, mark: str) -> Answer:
    if not answer.strip():
        raise NoAnswerError(f"nothing stands in its {mark}")
    return Answer(answer.strip(), marked=True)


def after_thinking(text: str) -> str:
    """What counts of a text. Raises NoAnswerError."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        return after
    if "<think>" in before or "<think>" in after:
        raise NoAnswerError("the text ends inside its <think>")
    return text


def _inner(boxed: str) -> str:
    """Inside a box one is in mathematics already: a dollar sign there only breaks it up."""
    return _DOLLAR.sub(" ", boxed)


def _last_boxed(text: str) -> tuple[str, int, int] | None:
    """What is in it, where it begins and where it ends."""
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
            return text[opening + 1 : place], start, place + 1
    raise NoAnswerError("its last \\boxed is not closed")
