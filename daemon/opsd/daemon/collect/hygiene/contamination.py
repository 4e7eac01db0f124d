"""Whether a text is a held-out problem: word for word, inside another text, or told anew.

The same rule serves both directions: a new pair against the suites, and a new suite against the
pairs that are stored.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from opsd.daemon.collect.hygiene.similarity import (
    holds_in_order,
    nearest_parts,
    number_bits,
    number_likeness,
    same_filling,
    skeleton_dice,
    word_likeness,
)
from opsd.daemon.collect.hygiene.suite_index import Item, Part, SuiteIndex, features, part_of
from opsd.daemon.collect.hygiene.words import Analysis, analyse, visible
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.text import normalise_prompt

MIN_CONTAINED_WORDS: Final = 12
"""A shorter problem is looked for inside longer texts only from sentence to sentence: in templated
sets one short problem may well be the beginning of another."""
MIN_SENTENCE_WORDS: Final = 6
MAX_ANALYSED_CHARS: Final = 20_000
"""Of a longer text the beginning and the end are analysed; word for word all of it is."""

MIN_SKELETON_WORDS: Final = 8
MIN_SKELETON_CONCEPTS: Final = 3
RENUMBERED_DICE: Final = 0.8
"""Of neighbouring words, numbers masked: so alike are a problem and its copy with new numbers."""

SAME_NUMBERS: Final = 0.9
NEARLY_SAME_NUMBERS: Final = 0.75
REWORDED_WORDS: Final = 0.4
REWORDED_WORDS_STRICT: Final = 0.65
"""Of the words, weighted by rarity: asked for beside the same numbers, and nearly the same."""
MIN_REWORDED_BITS: Final = 8.0
SHORT_CONCEPTS: Final = 5
LONG_CONCEPTS: Final = 9
NO_NUMBERS_SHORT: Final = 0.72
NO_NUMBERS_LONG: Final = 0.45
"""Without numbers the words alone decide; in a short question each one counts for more."""
TEMPLATED_WORDS: Final = 0.3
"""Beside the same numbers, each coming or going as in the other: names and things may differ."""
MAX_SYMBOLIC_EXTRA: Final = 2
"""Concepts that may stand beside a held-out expression and be no part of it ("the result")."""

_LOOSE_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")


class Overlap(StrEnum):
    """How a text holds a held-out problem."""

    EXACT = "exact"  # character for character, but for white space around it
    RECASED = "recased"  # but for case, Unicode form, punctuation, spaces, labels
    CONTAINED = "contained"  # inside a longer text, a few words put in between at most
    RENUMBERED = "renumbered"  # but for its numbers
    REWORDED = "reworded"  # the same numbers, other words


class Renumbered(StrEnum):
    """Whether a copy with other numbers is the same problem."""

    AUTO = "auto"  # unless its suite has items that differ in their numbers only
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class HeldOutMatch:
    """``similarity`` is in [0, 1]; ``evidence`` says what is alike, in words for a person."""

    suite: str
    item_id: str
    how: Overlap
    similarity: float
    evidence: str


class HeldOutIndex:
    """Implements ``HeldOut``: knows the problems of all suites.

    Readers never wait: a suite is indexed aside and then put in place at once. A lookup takes well
    under a millisecond; adding a suite about half a millisecond an item.
    """

    def __init__(
        self,
        suites: Mapping[str, Iterable[SuiteItem]],
        renumbered: Mapping[str, Renumbered] | None = None,
    ) -> None:
        """``renumbered`` overrides the rule for a suite; AUTO where it says nothing."""
        self._renumbered = dict(renumbered or {})
        self._writing = threading.Lock()
        self._suites: Mapping[str, _Suite] = {}
        for name, items in suites.items():
            self.add_suite(name, items)

    def add_suite(self, name: str, items: Iterable[SuiteItem]) -> None:
        """Adds a suite, or puts another in the place of the one with this name."""
        rule = self._renumbered.get(name, Renumbered.AUTO)
        made = _Suite(name, tuple(items), rule)
        with self._writing:
            self._suites = {**self._suites, name: made}

    def remove_suite(self, name: str) -> None:
        """A no-op for a suite that is not there."""
        with self._writing:
            self._suites = {key: suite for key, suite in self._suites.items() if key != name}

    def is_held_out(self, prompt: str) -> str | None:
        """The suite that holds this problem; None when none does."""
        found = self.match(prompt)
        return None if found is None else found.suite

    def match(self, prompt: str) -> HeldOutMatch | None:
        """The first match of the surest kind that any suite has."""
        suites = self._suites.values()
        if not suites:
            return None
        text = _Text(prompt)
        for look in (_Suite.verbatim, _Suite.containing, _Suite.renumbered, _Suite.reworded):
            for suite in suites:
                found = look(suite, text)
                if found is not None:
                    return found
        return None


class _Text:
    """A prompt in all the forms it is looked up in, each made when it is first asked for."""

    def __init__(self, prompt: str) -> None:
        self.stripped = prompt.strip()
        seen = visible(prompt)
        self.normal = normalise_prompt(prompt)
        self.visible = self.normal if seen is prompt else normalise_prompt(seen)
        self.squeezed = _LOOSE_SPACE.sub("", self.visible)
        self.words = tuple(self.visible.split())
        shown = seen
        if len(seen) > MAX_ANALYSED_CHARS:
            half = MAX_ANALYSED_CHARS // 2
            shown = seen[:half] + "\n" + seen[-half:]
        self.analysis: Analysis = analyse(shown)
        self.skeleton = self.analysis.skeleton()
        self.part = part_of(self.analysis.sentences)
        self.features = features(self.analysis)


class _Suite:
    """One suite's verbatim keys and its index. Immutable."""

    def __init__(self, name: str, items: tuple[SuiteItem, ...], rule: Renumbered) -> None:
        self._name = name
        self._rule = rule
        self._index = SuiteIndex(name, items, knows_templates=rule is not Renumbered.ALWAYS)
        self._stripped: dict[str, SuiteItem] = {}
        self._exact: dict[str, SuiteItem] = {}
        self._squeezed: dict[str, SuiteItem] = {}
        self._by_first_words: dict[tuple[str, ...], list[tuple[tuple[str, ...], SuiteItem]]] = {}
        self._by_stems: dict[tuple[str, ...], SuiteItem] = {}
        for one in self._index.items:
            self._add(one)

    def _add(self, one: Item) -> None:
        text = _Text(one.item.prompt)
        self._stripped.setdefault(text.stripped, one.item)
        self._exact.setdefault(text.normal, one.item)
        self._exact.setdefault(text.visible, one.item)
        self._squeezed.setdefault(text.squeezed, one.item)
        if len(text.words) >= MIN_CONTAINED_WORDS:
            head = text.words[:MIN_CONTAINED_WORDS]
            self._by_first_words.setdefault(head, []).append((text.words, one.item))
        if len(one.text.stems) >= MIN_SENTENCE_WORDS and one.part.concepts:
            self._by_stems.setdefault(one.text.stems, one.item)

    def verbatim(self, text: _Text) -> HeldOutMatch | None:
        if text.stripped in self._stripped:
            return self._found(self._stripped[text.stripped], Overlap.EXACT, 1.0, "word for word")
        for key, table in (
            (text.normal, self._exact),
            (text.visible, self._exact),
            (text.squeezed, self._squeezed),
        ):
            if key in table:
                said = "the same but for case, punctuation or spaces"
                return self._found(table[key], Overlap.RECASED, 1.0, said)
        item = self._by_stems.get(text.analysis.stems)
        # Operators are no stems: of two formulas the stems may be equal.
        if item is not None and not text.analysis.expressions:
            said = "the same but for labels and the endings of words"
            return self._found(item, Overlap.RECASED, 1.0, said)
        return None

    def containing(self, text: _Text) -> HeldOutMatch | None:
        words = text.words
        for start in range(len(words) - MIN_CONTAINED_WORDS + 1):
            head = words[start : start + MIN_CONTAINED_WORDS]
            for problem, item in self._by_first_words.get(head, ()):
                if words[start : start + len(problem)] == problem:
                    return self._found(
                        item, Overlap.CONTAINED, 1.0, f"all {len(problem)} words stand in it"
                    )
        return self._sentences(text.analysis)

    def _sentences(self, text: Analysis) -> HeldOutMatch | None:
        """Short problems, from one sentence's beginning to another's end."""
        sentences = text.sentences
        for start in range(len(sentences)):
            stems: tuple[str, ...] = ()
            for stop in range(start, min(len(sentences), start + 4)):
                stems += sentences[stop].stems
                item = self._by_stems.get(stems)
                if item is not None and not any(
                    one.expressions for one in sentences[start : stop + 1]
                ):
                    said = "a sentence of it, or several"
                    return self._found(item, Overlap.CONTAINED, 1.0, said)
        return None

    def renumbered(self, text: _Text) -> HeldOutMatch | None:
        if self._rule is Renumbered.NEVER or not text.analysis.numbers:
            return None
        for one in self._index.with_skeleton(text.skeleton):
            if self._counts_renumbered(one):
                said = "the same but for its numbers"
                return self._found(one.item, Overlap.RENUMBERED, 1.0, said)
        return None

    def _counts_renumbered(self, one: Item) -> bool:
        if self._rule is Renumbered.NEVER or one.is_templated:
            return False
        # What is hardly more than a formula is told apart by its numbers in every set.
        return (
            len(one.text.stems) >= MIN_SKELETON_WORDS
            and len(one.part.concepts) >= MIN_SKELETON_CONCEPTS
            and bool(one.part.numbers)
        )

    def reworded(self, text: _Text) -> HeldOutMatch | None:
        """Told anew, or renumbered and told slightly anew."""
        best: HeldOutMatch | None = None
        for one in self._index.candidates(text.features):
            found = self._compared(one, text)
            if found is not None and (best is None or found.similarity > best.similarity):
                best = found
        return best

    def _compared(self, one: Item, text: _Text) -> HeldOutMatch | None:
        stems = one.text.stems
        if len(stems) >= MIN_SENTENCE_WORDS and one.part.concepts:
            same_formulas = one.part.expressions <= text.part.expressions
            if same_formulas and holds_in_order(stems, text.analysis.stems):
                said = "its words in their order, a few others in between"
                return self._found(one.item, Overlap.CONTAINED, 1.0, said)
        own, part = nearest_parts(self._index, one, text.analysis, text.part)
        numbers = number_likeness(own, part)
        if numbers >= NEARLY_SAME_NUMBERS and one.expression in (*part.expressions, ""):
            words, bits = word_likeness(self._index, own, part)
            bits += sum(number_bits(number) for number in own.numbers & part.numbers)
            if bits >= MIN_REWORDED_BITS and _is_reworded(one, text, part, words, numbers):
                said = f"shares {words:.0%} of the words by weight"
                if own.numbers:
                    said += f" and {numbers:.0%} of the numbers"
                return self._found(one.item, Overlap.REWORDED, words, said)
        if self._counts_renumbered(one) and text.analysis.numbers:
            dice = skeleton_dice(one.skeleton, text.skeleton)
            if dice >= RENUMBERED_DICE:
                said = f"{dice:.0%} of its neighbouring words, other numbers"
                return self._found(one.item, Overlap.RENUMBERED, dice, said)
        return None

    def _found(self, item: SuiteItem, how: Overlap, similarity: float, said: str) -> HeldOutMatch:
        return HeldOutMatch(self._name, item.id, how, similarity, said)


def _is_reworded(one: Item, text: _Text, part: Part, words: float, numbers: float) -> bool:
    """Whether what is so much alike is the same problem."""
    if one.expression and len(one.part.concepts) < MIN_SKELETON_CONCEPTS:
        # Hardly more than a formula: the same one, and hardly anything beside it.
        extra = len(part.concepts.keys() - one.part.concepts.keys())
        same = one.text.expressions == text.analysis.expressions
        return same and numbers == 1.0 and extra <= MAX_SYMBOLIC_EXTRA
    if one.is_templated:
        return words >= TEMPLATED_WORDS and same_filling(one.text, text.analysis)
    if one.part.numbers:
        return (numbers >= SAME_NUMBERS and words >= REWORDED_WORDS) or (
            words >= REWORDED_WORDS_STRICT
        )
    share = (len(one.part.concepts) - SHORT_CONCEPTS) / (LONG_CONCEPTS - SHORT_CONCEPTS)
    least = NO_NUMBERS_SHORT + (NO_NUMBERS_LONG - NO_NUMBERS_SHORT) * min(1.0, max(0.0, share))
    return words >= least
