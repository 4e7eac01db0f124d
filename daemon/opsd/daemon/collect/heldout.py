"""An index of held-out problems, so that none is ever trained on."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping

from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.text import normalise_prompt, prompt_key

MIN_CONTAINED_WORDS = 12
"""A shorter problem is not looked for inside longer ones: in templated sets one short problem may
well be the beginning of another."""

_LOOSE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")


class HeldOutIndex:
    """Implements ``HeldOut``. A prompt is held out when a suite has a problem that

    - is the same but for case, Unicode form, punctuation and white space (``normalise_prompt``),
    - is the same when, besides, invisible characters and the spaces between words and around
      operators are left out ("3 + 4" and "3+4"; never between two digits), or
    - of at least 12 words, stands in it word for word ("Please solve: …").

    Problems that differ in a number or an operator are different problems.
    """

    def __init__(self, suites: Mapping[str, Iterable[SuiteItem]]) -> None:
        self._exact: dict[str, str] = {}
        self._squeezed: dict[str, str] = {}
        self._by_first_words: dict[tuple[str, ...], list[tuple[tuple[str, ...], str]]] = {}
        for name, items in suites.items():
            for item in items:
                self._add(name, item.prompt)

    def is_held_out(self, prompt: str) -> str | None:
        visible = _visible(prompt)
        for key in (prompt_key(prompt), prompt_key(visible)):
            if key in self._exact:
                return self._exact[key]
        return self._squeezed.get(_squeeze(visible)) or self._containing(visible)

    def _add(self, suite: str, prompt: str) -> None:
        visible = _visible(prompt)
        self._exact.setdefault(prompt_key(prompt), suite)
        self._exact.setdefault(prompt_key(visible), suite)
        self._squeezed.setdefault(_squeeze(visible), suite)
        words = tuple(normalise_prompt(visible).split())
        if len(words) >= MIN_CONTAINED_WORDS:
            head = words[:MIN_CONTAINED_WORDS]
            self._by_first_words.setdefault(head, []).append((words, suite))

    def _containing(self, visible: str) -> str | None:
        words = tuple(normalise_prompt(visible).split())
        for start in range(len(words) - MIN_CONTAINED_WORDS + 1):
            head = words[start : start + MIN_CONTAINED_WORDS]
            for problem, suite in self._by_first_words.get(head, ()):
                if words[start : start + len(problem)] == problem:
                    return suite
        return None


def _visible(prompt: str) -> str:
    """Without format characters (zero-width spaces, soft hyphens, direction marks)."""
    return "".join(c for c in prompt if unicodedata.category(c) != "Cf")


def _squeeze(prompt: str) -> str:
    return _LOOSE_SPACE.sub("", normalise_prompt(prompt))
