"""Word problems told in many ways: every part of a plot has several wordings."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

_PEOPLE = (
    ("Nora", "she", "her"),
    ("Victor", "he", "his"),
    ("Aisha", "she", "her"),
    ("Felix", "he", "his"),
    ("Ingrid", "she", "her"),
    ("Mateo", "he", "his"),
    ("Wanda", "she", "her"),
    ("Kofi", "he", "his"),
    ("Teresa", "she", "her"),
    ("Boris", "he", "his"),
)
_ASIDES = (
    "It is a rainy afternoon.",
    "The weather is fine.",
    "Nobody else is there.",
    "Everybody is looking forward to the weekend.",
    "The radio plays old songs.",
    "This happens every summer.",
    "{Pro} has never done this before.",
    "{Pos} friend has come to watch.",
    "There is no hurry.",
    "{Pro} does not want to make a mistake.",
)


@dataclass(frozen=True)
class Story:
    """``parts`` are the sentences in order, each in several wordings; ``other`` asks for something
    else. ``fillings`` and ``numbers`` go into the braces."""

    parts: tuple[tuple[str, ...], ...]
    question: tuple[str, ...]
    other: tuple[str, ...]
    fillings: tuple[tuple[str, str], ...]
    numbers: tuple[int, int, int]

    def with_numbers(self, numbers: tuple[int, int, int]) -> Story:
        return replace(self, numbers=numbers)

    def with_other_question(self) -> Story:
        return replace(self, question=self.other)


def tell(story: Story, rng: random.Random, avoid: str = "") -> str:
    """One telling; sentences that stand in ``avoid`` are told in other words where possible."""
    fillings = dict(story.fillings) | dict(zip("abc", map(str, story.numbers), strict=True))

    def fill(text: str) -> str:
        made = text.format_map(fillings)
        return made[0].upper() + made[1:]

    def word(options: tuple[str, ...]) -> str:
        told = [fill(option) for option in options]
        fresh = [text for text in told if text not in avoid]
        return rng.choice(fresh or told)

    sentences = [word(options) for options in story.parts]
    asides = [fill(text) for text in _ASIDES if fill(text) not in avoid]
    for aside in rng.sample(asides, rng.randint(0, 2)):
        sentences.insert(rng.randrange(len(sentences) + 1), aside)
    return " ".join([*sentences, word(story.question)])


def _story(
    rng: random.Random,
    parts: tuple[tuple[str, ...], ...],
    question: tuple[str, ...],
    other: tuple[str, ...],
    **fillings: str,
) -> Story:
    name, pro, pos = rng.choice(_PEOPLE)
    common = {"name": name, "pro": pro, "Pro": pro.capitalize(), "pos": pos}
    common["Pos"] = pos.capitalize()
    numbers = (rng.randint(21, 95), rng.randint(3, 19), rng.randint(100, 899))
    return Story(parts, question, other, tuple((common | fillings).items()), numbers)


def _orchard(rng: random.Random) -> Story:
    fruit = rng.choice(("pears", "plums", "cherries", "lemons", "figs"))
    return _story(
        rng,
        (
            (
                "In {name}'s orchard there are {a} trees, and every tree bears {c} {fruit}.",
                "{name} owns an orchard of {a} trees with {c} {fruit} on each of them.",
                "Each of the {a} trees in the orchard of {name} carries {c} {fruit}.",
            ),
            (
                "A storm blows {b} of the trees over.",
                "Then {b} trees are blown over in a storm.",
                "During a storm {b} of these trees fall.",
            ),
        ),
        (
            "How many {fruit} can still be harvested?",
            "What number of {fruit} is left to harvest?",
            "How many {fruit} are there to be harvested after the storm?",
        ),
        (
            "If a basket holds 40 {fruit}, how many baskets does one tree fill?",
            "What share of the trees has the storm destroyed?",
        ),
        fruit=fruit,
    )


def _workshop(rng: random.Random) -> Story:
    toy = rng.choice(("kites", "puppets", "lanterns", "stools", "bowls"))
    return _story(
        rng,
        (
            (
                "{name} has a workshop and makes {a} {toy} a week there.",
                "Every week {a} {toy} are made in {name}'s workshop.",
                "A workshop that belongs to {name} turns out {a} {toy} weekly.",
            ),
            (
                "A shop in town has ordered {c} of them and wants them soon.",
                "An order for {c} {toy} has come from a shop in town.",
                "{c} {toy} were ordered by a shop in the town.",
            ),
            (
                "{b} {toy} are in stock already.",
                "There are already {b} of them in stock.",
                "In the store room {b} {toy} stand ready.",
            ),
        ),
        (
            "After how many weeks can {name} deliver the order?",
            "How many weeks will it take until the order is complete?",
            "In how many weeks is the whole order ready?",
        ),
        (
            "How much does {name} earn in a year at 12 dollars apiece?",
            "How many more does {pro} make in a year than in a month?",
        ),
        toy=toy,
    )


def _aquarium(rng: random.Random) -> Story:
    fish = rng.choice(("guppies", "goldfish", "tetras", "snails", "shrimps"))
    return _story(
        rng,
        (
            (
                "The aquarium of {name} holds {c} litres, and {pro} keeps {a} {fish} in it.",
                "{name} keeps {a} {fish} in an aquarium of {c} litres.",
                "In a {c} litre aquarium {name} has {a} {fish}.",
            ),
            (
                "Each of the {fish} needs {b} litres of water.",
                "{b} litres of water are needed for every one of the {fish}.",
                "One needs {b} litres of water for each of them.",
            ),
        ),
        (
            "How many litres is the aquarium too small or too large?",
            "By how many litres does the aquarium's size differ from what is needed?",
            "What is the difference in litres between the room needed and the aquarium's?",
        ),
        (
            "How long does {pro} need to fill it at 6 litres a minute?",
            "If half of the {fish} are given away, how many stay?",
        ),
        fish=fish,
    )


def _choir(rng: random.Random) -> Story:
    group = rng.choice(("choir", "orchestra", "theatre group", "dance company", "circus"))
    return _story(
        rng,
        (
            (
                "The {group} that {name} directs has {a} members.",
                "{name} is the director of a {group} with {a} members.",
                "There are {a} members in {name}'s {group}.",
            ),
            (
                "For a tour they hire coaches with {b} seats each.",
                "Coaches which seat {b} are hired for their tour.",
                "They go on tour in hired coaches of {b} seats.",
            ),
            (
                "One coach costs {c} dollars.",
                "The hire of each coach is {c} dollars.",
                "They are charged {c} dollars for a coach.",
            ),
        ),
        (
            "What do all the coaches cost together?",
            "How much must be paid for all coaches that are needed?",
            "Find the total cost of the coaches.",
        ),
        (
            "How many seats stay empty in the last coach?",
            "How many concerts must they give if each one brings 950 dollars?",
        ),
        group=group,
    )


def _library(rng: random.Random) -> Story:
    media = rng.choice(("maps", "records", "comics", "atlases", "scores"))
    return _story(
        rng,
        (
            (
                "{name} sorts {c} {media} for a museum.",
                "A museum has asked {name} to put {c} {media} in order.",
                "For a museum, {c} {media} are being sorted by {name}.",
            ),
            (
                "In an hour {pro} gets through {a} of them.",
                "{Pro} manages {a} {media} per hour.",
                "{a} {media} are done every hour.",
            ),
            (
                "After each hour {pro} rests for {b} minutes.",
                "A rest of {b} minutes follows every hour of work.",
                "Between the hours {pro} takes a break, {b} minutes each time.",
            ),
        ),
        (
            "When everything is sorted, how many minutes has {pro} rested?",
            "How many minutes of rest are there until the work is finished?",
            "What is the total time of all rests, in minutes, when all is in order?",
        ),
        (
            "How many of the {media} would two people sort in a working week of 38 hours?",
            "If a tenth is damaged, how many {media} can be shown?",
        ),
        media=media,
    )


def _kitchen(rng: random.Random) -> Story:
    dish = rng.choice(("soup", "stew", "curry", "porridge", "punch"))
    return _story(
        rng,
        (
            (
                "{name} cooks {a} litres of {dish} for a street party.",
                "For a party in the street {name} has cooked {a} litres of {dish}.",
                "{a} litres of {dish} are cooked by {name} for a street party.",
            ),
            (
                "It is served in cups of {c} millilitres.",
                "One cup holds {c} millilitres of it.",
                "The cups in which it is served hold {c} millilitres.",
            ),
            (
                "The neighbours have emptied {b} cups so far.",
                "Up to now {b} cups were eaten by the neighbours.",
                "{b} cups have gone to the neighbours already.",
            ),
        ),
        (
            "How many full cups can still be served?",
            "For how many more full cups does the {dish} last?",
            "What is the number of full cups that remain?",
        ),
        (
            "If a litre costs 3 dollars to make, what did the {dish} cost?",
            "How many pots of 6 litres did {pro} need?",
        ),
        dish=dish,
    )


def _ferry(rng: random.Random) -> Story:
    place = rng.choice(("lake", "fjord", "bay", "strait", "river"))
    return _story(
        rng,
        (
            (
                "A ferry crosses the {place} and takes {a} minutes for it.",
                "It takes a ferry {a} minutes to cross the {place}.",
                "Crossing the {place} by ferry lasts {a} minutes.",
            ),
            (
                "It waits {b} minutes at each side.",
                "On either side the ferry stays {b} minutes.",
                "At both ends it lies still for {b} minutes.",
            ),
            (
                "{name}, the captain, works {c} minutes a day.",
                "Its captain {name} has a working day of {c} minutes.",
                "The working day of {name}, who is the captain, has {c} minutes.",
            ),
        ),
        (
            "How many times a day does the ferry cross?",
            "What is the greatest number of crossings in one day?",
            "How many crossings can the captain make in a day?",
        ),
        (
            "How wide is the {place} if the ferry goes 14 kilometres per hour?",
            "How many passengers a day can it take if it has 60 seats?",
        ),
        place=place,
    )


def _knitting(rng: random.Random) -> Story:
    piece = rng.choice(("scarf", "blanket", "jumper", "shawl", "rug"))
    return _story(
        rng,
        (
            (
                "For one {piece} {name} uses {c} grams of wool.",
                "{name} knits; a {piece} takes {c} grams of wool.",
                "{c} grams of wool go into each {piece} that {name} knits.",
            ),
            (
                "A ball of wool weighs {a} grams and costs {b} dollars.",
                "Wool comes in balls of {a} grams at {b} dollars.",
                "{pro} buys the wool in balls: {a} grams for {b} dollars.",
            ),
        ),
        (
            "How much money does the wool for one {piece} cost?",
            "What must {name} pay for the wool that a single {piece} needs?",
            "Find the price of the balls of wool needed for a {piece}.",
        ),
        (
            "How many metres of yarn are that if a gram has 2.5 metres?",
            "If {pro} knits 8 grams in an hour, when is the {piece} finished?",
        ),
        piece=piece,
    )


STORIES: tuple[Callable[[random.Random], Story], ...] = (
    _orchard,
    _workshop,
    _aquarium,
    _choir,
    _library,
    _kitchen,
)
OTHER_STORIES = (_ferry, _knitting)
"""No held-out problem has these plots."""
