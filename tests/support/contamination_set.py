"""A labelled set for decontamination: held-out problems, copies planted on purpose, clean problems.

Seeded. It comes in two halves. ``TUNED`` has the hand-written problems that the rules' thresholds
were chosen on; those of ``KEPT`` were written at the same time and played no part in it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from contamination_stories import OTHER_STORIES, STORIES, Story, tell

from opsd.daemon.types.pairs import SuiteItem

HERE = Path(__file__).parent / "contamination"
NUM_STORIES = 60
NUM_TEMPLATED = 120
NUM_SYMBOLIC = 60
NUM_CLEAN_TEMPLATED = 500
NUM_CLEAN_SYMBOLIC = 200
MIN_RENUMBERED_WORDS = 14

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_OPTION = re.compile(r"\(?\b([A-D])\)")
_NAMES = ("Tom", "Ana", "Sam", "Eva", "Yusuf", "Oscar", "Emily", "Priya", "Viktoria", "Liam")
_THINGS = ("apples", "cards", "coins", "marbles")
_GAINS, _LOSSES = ("finds", "gains"), ("loses", "sells")
_BEFORE = (
    "Please answer the following question. ",
    "Solve this step by step and put the final answer in a box.\n\n",
    "You are a helpful tutor. A student asks: ",
    "### Instruction\n",
    "I could not work this one out, can you help? ",
)
_AFTER = ("", " Think carefully.", "\n\nAnswer:", " Show all your steps.", " Thanks a lot!")
_FILLERS = ("actually", "of course", "as it happens", "exactly", "in fact", "say")


class Half(StrEnum):
    TUNED = "tuned"
    KEPT = "kept aside"


class Planted(StrEnum):
    """How a copy differs from its held-out problem."""

    EXACT = "exact"
    RECASED = "re-cased"  # case, punctuation, spaces, Unicode form
    RELABELLED = "re-numbered, labels"  # "Q12." became "7)", options have other letters
    RENUMBERED = "re-numbered, quantities"
    REWORDED = "reworded"
    REWORDED_STORY = "reworded, generated"
    WRAPPED = "inside a longer prompt"
    INSERTED = "words inserted"


class Clean(StrEnum):
    """Why a problem that is not held out is near one that is."""

    TEMPLATE = "same template, other numbers"
    OPERATIONS = "same template and numbers, other operations"
    SYMBOLIC = "formula with another number or operator"
    NUMBERS = "same numbers, other story"
    TOPIC = "same kind of story, other question and numbers"
    BOILERPLATE = "same instructions, other problem"
    UNRELATED = "other problems"
    TWIN = "twin: same story, often the same numbers, another question"


@dataclass(frozen=True)
class Case:
    text: str
    label: Planted | Clean
    origin: str = ""  # id of the held-out problem


@dataclass(frozen=True)
class LabelledSet:
    """``suites`` as a daemon holds them: ordinary problems, and two made from templates."""

    suites: dict[str, list[SuiteItem]]
    planted: list[Case]
    clean: list[Case]


@dataclass(frozen=True)
class Triple:
    """Hand-written: a problem, the same in other words, another of the same topic."""

    original: str
    reworded: str
    twin: str


def read_triples(half: Half) -> list[Triple]:
    number = 1 if half is Half.TUNED else 2
    text = (HERE / f"paraphrases_{number}.txt").read_text()
    found = []
    for block in text.split("\n\n"):
        lines = {line[0]: line[3:] for line in block.splitlines() if line[1:3] == ": "}
        if lines:
            found.append(Triple(lines["O"], lines["R"], lines["N"]))
    return found


def make_set(half: Half, seed: int = 0) -> LabelledSet:
    """The same for the same half and seed."""
    rng = random.Random(f"{half} {seed}")
    triples, others = read_triples(half), read_triples(_other(half))
    stories = _stories(rng, NUM_STORIES)
    ordinary = [triple.original for triple in triples] + [tell(story, rng) for story in stories]
    templated = _distinct(rng, _templated, NUM_TEMPLATED + NUM_CLEAN_TEMPLATED)
    symbolic = _distinct(rng, _symbolic, NUM_SYMBOLIC + NUM_CLEAN_SYMBOLIC)
    held_templated, held_symbolic = templated[:NUM_TEMPLATED], symbolic[:NUM_SYMBOLIC]
    suites = {
        "ordinary": _items("o", ordinary),
        "templated": _items("t", held_templated),
        "symbolic": _items("s", held_symbolic),
    }
    planted = [case for items in suites.values() for case in _copies(items, rng)]
    planted += [
        Case(triple.reworded, Planted.REWORDED, f"o{number}")
        for number, triple in enumerate(triples)
    ]
    planted += [
        Case(
            _retold(story, suites["ordinary"][len(triples) + number].prompt, rng),
            Planted.REWORDED_STORY,
            f"o{len(triples) + number}",
        )
        for number, story in enumerate(stories)
    ]
    for number, problem in enumerate(ordinary):
        if can_be_renumbered(problem):
            planted.append(Case(renumber(problem, rng), Planted.RENUMBERED, f"o{number}"))
    clean = [Case(text, Clean.TEMPLATE) for text in templated[NUM_TEMPLATED:]]
    clean += [Case(text, Clean.SYMBOLIC) for text in symbolic[NUM_SYMBOLIC:]]
    clean += _other_operations(held_templated, set(templated), rng)
    clean += [Case(triple.twin, Clean.TWIN) for triple in triples]
    clean += [
        Case(text, Clean.UNRELATED)
        for triple in others
        for text in (triple.original, triple.reworded, triple.twin)
    ]
    clean += [
        Case(rng.choice(_BEFORE) + triple.original + rng.choice(_AFTER), Clean.BOILERPLATE)
        for triple in others
    ]
    clean += _near_stories(stories, rng)
    return LabelledSet(suites, planted, clean)


def can_be_renumbered(problem: str) -> bool:
    """Whether with other numbers it is still that problem: a told one, not a bare exercise."""
    has_formula = any(sign in problem for sign in "=^")
    return (
        len(problem.split()) >= MIN_RENUMBERED_WORDS
        and bool(_NUMBER.search(_OPTION.sub("", problem)))
        and not has_formula
        and ":" not in problem
    )


def renumber(problem: str, rng: random.Random) -> str:
    """Every number in digits becomes another one of the same length."""

    def other(match: re.Match[str]) -> str:
        while True:
            made = "".join(rng.choice("123456789") if c.isdigit() else c for c in match[0])
            if made != match[0]:
                return made

    return _NUMBER.sub(other, problem)


def _other(half: Half) -> Half:
    return Half.KEPT if half is Half.TUNED else Half.TUNED


def _items(prefix: str, problems: Sequence[str]) -> list[SuiteItem]:
    return [SuiteItem(f"{prefix}{n}", text, "numeric", "1") for n, text in enumerate(problems)]


def _stories(rng: random.Random, count: int) -> list[Story]:
    return [STORIES[number % len(STORIES)](rng) for number in range(count)]


def _retold(story: Story, first: str, rng: random.Random) -> str:
    """In other words for every part of it, where there are any."""
    return max(
        (tell(story, rng, avoid=first) for _ in range(6)), key=lambda text: _news(text, first)
    )


def _news(text: str, first: str) -> int:
    return len(set(text.split()) - set(first.split()))


def _copies(items: Sequence[SuiteItem], rng: random.Random) -> Iterator[Case]:
    for item in items:
        problem = item.prompt
        yield Case(problem, Planted.EXACT, item.id)
        yield Case(_recased(problem, rng), Planted.RECASED, item.id)
        yield Case(_relabelled(problem, rng), Planted.RELABELLED, item.id)
        wrapped = rng.choice(_BEFORE) + problem + rng.choice(_AFTER)
        yield Case(wrapped, Planted.WRAPPED, item.id)
        if len(problem.split()) >= 8:
            yield Case(_inserted(problem, rng), Planted.INSERTED, item.id)


def _recased(problem: str, rng: random.Random) -> str:
    how: Callable[[str], str] = rng.choice((str.upper, str.lower, str.title, str.swapcase))
    changed = how(problem)
    match rng.randrange(4):
        case 0:
            changed = changed.replace(" ", "  ").replace(",", "")
        case 1:
            changed = changed.rstrip("?.") + "!"
        case 2:
            changed = "".join(
                chr(ord(c) + 0xFEE0) if c.isalnum() and c.isascii() else c for c in changed
            )
        case _:
            changed = changed.replace(" ", "\n", 1).replace("e", "e\u00ad", 1)
    return changed


def _relabelled(problem: str, rng: random.Random) -> str:
    number = rng.randint(1, 99)
    label = rng.choice(
        (
            f"Q{number}. ",
            f"{number}) ",
            f"({number}) ",
            f"Problem {number}: ",
            f"Question {number}\n",
            f"{number}. ",
            f"Exercise 3.{number}: ",
        )
    )
    if len(_OPTION.findall(problem)) >= 3:
        letters = iter("abcd")
        style = rng.choice(("{})", "({})"))
        problem = _OPTION.sub(lambda _: style.format(next(letters)), problem)
    return label + problem


def _inserted(problem: str, rng: random.Random) -> str:
    words = problem.split()
    for _ in range(rng.randint(1, 2)):
        words.insert(rng.randrange(2, len(words)), rng.choice(_FILLERS))
    return " ".join(words)


def _distinct(rng: random.Random, make: Callable[[random.Random], str], count: int) -> list[str]:
    made: dict[str, None] = {}
    while len(made) < count:
        made.setdefault(make(rng))
    return list(made)


def _templated(rng: random.Random) -> str:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    steps = [
        f"{rng.choice(_GAINS + _LOSSES)} {rng.randint(1, 99)}" for _ in range(rng.randint(2, 4))
    ]
    return f"{name} has {rng.randint(10, 99)} {thing}, {', '.join(steps)}. How many {thing}?"


def _symbolic(rng: random.Random) -> str:
    numbers = [str(rng.randint(1, 99)) for _ in range(rng.randint(3, 5))]
    text = numbers[0] + "".join(rng.choice("+-*") + number for number in numbers[1:])
    return rng.choice(("{}", "Compute {}.", "What is {}?")).format(text)


def _other_operations(held: Sequence[str], taken: set[str], rng: random.Random) -> Iterator[Case]:
    """Held-out numbers under another name, with at least one gain made a loss or the reverse."""
    for problem in held:
        words = problem.split()
        signs = [n for n, word in enumerate(words) if word in _GAINS + _LOSSES]
        for number in rng.sample(signs, rng.randint(1, len(signs))):
            words[number] = rng.choice(_LOSSES if words[number] in _GAINS else _GAINS)
        words[0] = rng.choice(_NAMES)
        text = " ".join(words)
        if text not in taken:
            yield Case(text, Clean.OPERATIONS)


def _near_stories(stories: Sequence[Story], rng: random.Random) -> Iterator[Case]:
    for number, story in enumerate(stories):
        other = OTHER_STORIES[number % len(OTHER_STORIES)](rng)
        yield Case(tell(other.with_numbers(story.numbers), rng), Clean.NUMBERS)
        again = STORIES[number % len(STORIES)](rng)
        yield Case(tell(again.with_other_question(), rng), Clean.TOPIC)
