"""One suite's problems, arranged so that those like a given text are found at once."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from opsd.daemon.collect.hygiene.lexicon import COMMON
from opsd.daemon.collect.hygiene.words import (
    NUMBER,
    Analysis,
    Sentence,
    analyse,
    concept,
    is_function_word,
)
from opsd.daemon.types.pairs import SuiteItem

MAX_CANDIDATES: Final = 6
MAX_POSTINGS: Final = 800
"""Postings read for one lookup: the rarest features come first, so its cost is bounded."""
MAX_RUN: Final = 16
MAX_RUN_STARTS: Final = 64
"""Numbers in a run of them, and of a text, by which problems made from a template are found."""
PSEUDO_TEXTS: Final = 200
"""Texts imagined beside the suite, so that a word's rarity means something in a small one."""
RARE_SHARE: Final = 0.02
COMMON_SHARE: Final = 0.15
"""Of the imagined texts, how many have an ordinary word, and one of ``COMMON``."""
MIN_TEMPLATE_ITEMS: Final = 3
"""Items with one frame or skeleton from which it is a template: numbers tell problems apart."""
BOILERPLATE_SHARE: Final = 0.1
_MIN_BOILERPLATE_ITEMS = 5
_CONTENT = "*"
_START = "^"
_COMMON_CONCEPTS = frozenset(concept(word) for word in COMMON)

Feature = str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """Some sentences' concepts, numbers and formulas; ``optional_numbers`` are small ones in words,
    which may come and go with the wording ("both of the two")."""

    concepts: Counter[str]
    numbers: Counter[str]
    optional_numbers: Counter[str]
    expressions: frozenset[str]


def part_of(sentences: Iterable[Sentence]) -> Part:
    concepts: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    optional: Counter[str] = Counter()
    expressions: set[str] = set()
    for one in sentences:
        concepts.update(one.concepts)
        numbers.update(one.numbers)
        optional.update(one.spelled)
        expressions.update(one.expressions)
    return Part(concepts, numbers, optional, frozenset(expressions))


@dataclass(frozen=True, slots=True)
class Item:
    """One problem; ``is_templated``: its suite has others that differ from it in fillings only."""

    item: SuiteItem
    text: Analysis
    body: Sequence[Sentence]  # without its suite's boilerplate
    part: Part  # of the body
    expression: str  # the longest; "" where there is none
    skeleton: tuple[str, ...]
    is_templated: bool


class SuiteIndex:
    """Immutable."""

    def __init__(
        self, name: str, items: Iterable[SuiteItem], *, knows_templates: bool = True
    ) -> None:
        """Without ``knows_templates`` no item counts as made from a template."""
        self.name = name
        given = list(items)
        texts = [analyse(item.prompt) for item in given]
        self._documents = Counter(
            meaning for text in texts for meaning in set(text.concepts) if meaning
        )
        self._num_texts = len(texts)
        self._boilerplate = _boilerplate(texts)
        bodies = [self.without_boilerplate(text.sentences) for text in texts]
        templated = _templated(bodies, texts) if knows_templates else [False] * len(texts)
        self.items: tuple[Item, ...] = tuple(
            _item(item, text, body, is_templated)
            for item, text, body, is_templated in zip(given, texts, bodies, templated, strict=True)
        )
        self._bits = {meaning: self._rarity(meaning) for meaning in self._documents}
        self._postings: dict[Feature, list[int]] = {}
        self._skeletons: dict[tuple[str, ...], list[int]] = {}
        for number, text in enumerate(texts):
            self._skeletons.setdefault(text.skeleton(), []).append(number)
            is_templated = self.items[number].is_templated
            for feature in _template_features(text) if is_templated else features(text):
                self._postings.setdefault(feature, []).append(number)
        self._max_posting = max(64, len(texts) // 20)

    def bits(self, meaning: str) -> float:
        """How much it says that two texts share this concept: -log2 of its share of texts."""
        known = self._bits.get(meaning)
        return self._rarity(meaning) if known is None else known

    def _rarity(self, meaning: str) -> float:
        share = COMMON_SHARE if meaning in _COMMON_CONCEPTS else RARE_SHARE
        texts = self._documents[meaning] + PSEUDO_TEXTS * share
        return math.log2((self._num_texts + PSEUDO_TEXTS) / texts)

    def without_boilerplate(self, sentences: Sequence[Sentence]) -> Sequence[Sentence]:
        """Without the sentences that many items share ("Answer with a number."), unless none is
        left."""
        kept = [one for one in sentences if one.stems not in self._boilerplate]
        return kept if 0 < len(kept) < len(sentences) else sentences

    def with_skeleton(self, skeleton: tuple[str, ...]) -> list[Item]:
        """The items that are this text but for their numbers."""
        return [self.items[number] for number in self._skeletons.get(skeleton, ())]

    def candidates(self, wanted: Collection[Feature]) -> list[Item]:
        """At most ``MAX_CANDIDATES`` items that share the most of what is rare with a text whose
        ``features`` these are."""
        postings = [
            posting
            for feature in wanted
            if (posting := self._postings.get(feature)) and len(posting) <= self._max_posting
        ]
        postings.sort(key=len)
        shared: dict[int, float] = {}
        num_read = 0
        for posting in postings:
            num_read += len(posting)
            if num_read > MAX_POSTINGS:
                break
            weight = math.log2((self._num_texts + PSEUDO_TEXTS) / len(posting))
            for number in posting:
                shared[number] = shared.get(number, 0.0) + weight
        best = heapq.nlargest(MAX_CANDIDATES, shared, key=shared.__getitem__)
        return [self.items[number] for number in best]


def _item(item: SuiteItem, text: Analysis, body: Sequence[Sentence], is_templated: bool) -> Item:
    return Item(
        item=item,
        text=text,
        body=body,
        part=part_of(body),
        expression=max(text.expressions, key=len, default=""),
        skeleton=text.skeleton(),
        is_templated=is_templated,
    )


def features(text: Analysis) -> set[Feature]:
    """What items are looked up by; pairs of neighbours tell apart what single words do not."""
    found: set[Feature] = set(text.concepts)
    found.update(f"{NUMBER}{number}" for number in text.numbers)
    found.update(f"={expression}" for expression in text.expressions)
    for one, next_one in pairwise(text.numbers):
        found.add((one, next_one) if one <= next_one else (next_one, one))
    for one, next_one in pairwise(text.concepts):
        found.add((one, next_one))
    numbers = text.numbers[:MAX_RUN_STARTS]
    for start in range(len(numbers)):
        for stop in range(start + 1, min(len(numbers), start + MAX_RUN) + 1):
            found.add((NUMBER, *numbers[start:stop]))
    return found


def _template_features(text: Analysis) -> list[Feature]:
    """All its numbers in order: without them no text can be this problem."""
    return [(NUMBER, *text.numbers)]


def _boilerplate(texts: Sequence[Analysis]) -> frozenset[tuple[str, ...]]:
    """The sentences without a number that many items share."""
    sentences = Counter(
        stems
        for text in texts
        for stems in {one.stems for one in text.sentences if not one.numbers}
    )
    least = max(_MIN_BOILERPLATE_ITEMS, math.ceil(BOILERPLATE_SHARE * len(texts)))
    return frozenset(sentence for sentence, count in sentences.items() if count >= least)


def _templated(bodies: Sequence[Sequence[Sentence]], texts: Sequence[Analysis]) -> list[bool]:
    """Which texts with numbers repeat a form: the same but for numbers, or but for numbers and
    content words."""
    frames = [frozenset(pair for one in body for pair in _frame(one.stems)) for body in bodies]
    num_frames = Counter(frames)
    num_skeletons = Counter(text.skeleton() for text in texts)
    return [
        bool(text.numbers)
        and (
            num_frames[frame] >= MIN_TEMPLATE_ITEMS
            or num_skeletons[text.skeleton()] >= MIN_TEMPLATE_ITEMS
        )
        for frame, text in zip(frames, texts, strict=True)
    ]


def _frame(stems: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Neighbours in the sentence, numbers and content words masked; a run of content words is one
    mask. As a set, for a template may repeat a part of itself."""
    frame = [_START]
    for stem in stems:
        if stem[0].isdigit():
            mask = NUMBER
        else:
            mask = stem if is_function_word(stem) else _CONTENT
        if mask != _CONTENT or frame[-1] != _CONTENT:
            frame.append(mask)
    return pairwise(frame)
