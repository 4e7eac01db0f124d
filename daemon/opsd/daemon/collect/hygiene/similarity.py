"""How alike a text and a held-out problem are, and from where on they are the same problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from opsd.daemon.collect.hygiene.lexicon import LESS, MORE
from opsd.daemon.collect.hygiene.suite_index import Item, Part, SuiteIndex, part_of
from opsd.daemon.collect.hygiene.words import Analysis, Sentence, concept

PREFIX_CHARS: Final = 5
"""Words that begin with so many equal letters count as related ("populous", "population")."""
RELATED: Final = 0.7
EXPRESSION_BITS: Final = 12.0
"""What a shared formula says, as much as two rare words."""
BITS_PER_DIGIT: Final = 1.5
MAX_NUMBER_BITS: Final = 6.0
MIN_INSERTED: Final = 3
WORDS_PER_INSERTED: Final = 4
"""Words that may be put into a problem: so many, or one for so many of its own."""
MAX_STARTS: Final = 8
MAX_WINDOW_SENTENCES: Final = 16

_MORE = frozenset(concept(word) or word for word in MORE)
_LESS = frozenset(concept(word) or word for word in LESS)


def nearest_parts(suite: SuiteIndex, item: Item, text: Analysis, whole: Part) -> tuple[Part, Part]:
    """Of the item and of the text, what can be compared: the run of the text's sentences that is
    most like the item, without the suite's boilerplate, and of both no asides. ``whole`` is all of
    the text."""
    sentences = _window(item, text.sentences, whole)
    sentences = suite.without_boilerplate(sentences)
    own = item.body
    if item.part.numbers:
        sentences = _without_asides(sentences, item.part)
    part = whole if len(sentences) == len(text.sentences) else part_of(sentences)
    if item.part.numbers:
        own = _without_asides(item.body, part)
    return (item.part if len(own) == len(item.body) else part_of(own)), part


def _without_asides(sentences: Sequence[Sentence], other: Part) -> Sequence[Sentence]:
    """Leaves out statements that have no number and no word of the other text. What is asked, or
    stands last, is no aside."""
    return [
        one
        for one in sentences
        if one.numbers
        or one.is_question
        or one is sentences[-1]
        or not other.concepts.keys().isdisjoint(one.concepts)
    ]


def number_likeness(one: Part, other: Part) -> float:
    """Dice coefficient in [0, 1] of the numbers as multisets; 1 where neither has any.

    Small ones in words ("both of the two") may come and go with the wording.
    """
    if one.numbers == other.numbers:
        return 1.0
    common, missing = 0, _num_missing(other.numbers, one.numbers, other.optional_numbers)
    for number, count in one.numbers.items():
        common += min(count, other.numbers.get(number, 0))
    missing += _num_missing(one.numbers, other.numbers, one.optional_numbers)
    return 2 * common / (2 * common + missing) if common or missing else 1.0


def _num_missing(own: Counter[str], other: Counter[str], optional: Counter[str]) -> int:
    return sum(
        max(0, count - other.get(number, 0) - optional.get(number, 0))
        for number, count in own.items()
    )


def word_likeness(suite: SuiteIndex, one: Part, other: Part) -> tuple[float, float]:
    """Dice coefficient in [0, 1] of the concepts, weighted by rarity, and the bits shared."""
    common = one.concepts.keys() & other.concepts.keys()
    shared = sum(suite.bits(meaning) for meaning in common)
    one_only, other_only = one.concepts.keys() - common, other.concepts.keys() - common
    shared += _related(suite, one_only, other_only)
    shared += EXPRESSION_BITS * len(one.expressions & other.expressions)
    alone = sum(suite.bits(meaning) for meaning in (*one_only, *other_only))
    return (2 * shared / (2 * shared + alone) if shared else 0.0), shared


def same_filling(one: Analysis, other: Analysis) -> bool:
    """Whether two problems of one template say the same: the same numbers in the same order, and
    after each the same comes, or goes, or is said."""
    if one.numbers != other.numbers:
        return False
    slots, other_slots = one.slots(), other.slots()
    return len(slots) == len(other_slots) and all(
        mine == theirs
        or (_direction(mine) == _direction(theirs) if _direction(mine) else bool(mine & theirs))
        for mine, theirs in zip(slots, other_slots, strict=True)
    )


def _direction(meanings: set[str]) -> int:
    return int(not _MORE.isdisjoint(meanings)) - int(not _LESS.isdisjoint(meanings))


def number_bits(number: str) -> float:
    """How much it says that two texts share a number: more digits, less chance."""
    return min(MAX_NUMBER_BITS, BITS_PER_DIGIT * sum(c.isdigit() for c in number))


def _window(item: Item, sentences: Sequence[Sentence], whole: Part) -> Sequence[Sentence]:
    size = len(item.part.concepts) + len(item.part.numbers)
    if len(sentences) < 2 or len(whole.concepts) + len(whole.numbers) <= 1.3 * size:
        return sentences
    matches = [_shares(item, sentence) for sentence in sentences]
    matching = [number for number, (shared, _) in enumerate(matches) if shared]
    if not matching:
        return sentences
    best, best_dice = (matching[0], matching[-1]), -1.0
    for start in matching[:MAX_WINDOW_SENTENCES]:
        shared = own = 0
        for stop in range(start, min(matching[-1] + 1, start + MAX_WINDOW_SENTENCES)):
            shared, own = shared + matches[stop][0], own + matches[stop][1]
            dice = 2 * min(shared, size) / (size + own)
            if dice > best_dice:
                best, best_dice = (start, stop), dice
    return sentences[best[0] : best[1] + 1]


def _shares(item: Item, sentence: Sentence) -> tuple[int, int]:
    """How many distinct concepts and numbers of a sentence are the item's too, and how many it
    has."""
    meanings, numbers = set(sentence.concepts), set(sentence.numbers)
    shared = len(meanings & item.part.concepts.keys()) + len(numbers & item.part.numbers.keys())
    return shared, len(meanings) + len(numbers)


def _related(suite: SuiteIndex, one: set[str], other: set[str]) -> float:
    """Bits of words that only begin alike; takes them out of both."""
    by_prefix = {word[:PREFIX_CHARS]: word for word in one if len(word) >= PREFIX_CHARS}
    shared = 0.0
    for word in list(other):
        fellow = by_prefix.get(word[:PREFIX_CHARS])
        if fellow is not None and fellow in one:
            shared += RELATED * min(suite.bits(word), suite.bits(fellow))
            one.remove(fellow)
            other.remove(word)
    return shared


def holds_in_order(problem: Sequence[str], text: Sequence[str]) -> bool:
    """Whether the text has the problem's stems in their order, at most a few words put in between
    and no number."""
    spare = max(MIN_INSERTED, len(problem) // WORDS_PER_INSERTED)
    starts = [place for place, stem in enumerate(text) if stem == problem[0]]
    return any(_holds_from(problem, text, start, spare) for start in starts[:MAX_STARTS])


def _holds_from(problem: Sequence[str], text: Sequence[str], start: int, spare: int) -> bool:
    place = start
    for stem in problem:
        while place < len(text) and text[place] != stem:
            if spare == 0 or text[place][0].isdigit():
                return False
            spare, place = spare - 1, place + 1
        if place == len(text):
            return False
        place += 1
    return True


def skeleton_dice(one: Sequence[str], other: Sequence[str]) -> float:
    """Dice coefficient of neighbouring words, numbers masked."""
    left = Counter(pairwise(one))
    right = Counter(pairwise(other))
    total = left.total() + right.total()
    return 2 * (left & right).total() / total if total else 0.0
