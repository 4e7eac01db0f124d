"""English words as problems use them: which mean the same, which exclude each other.

Small on purpose: it holds what exercises, code tasks and quiz questions are made of. A word that is
not here stands for itself. Words are stems as ``words.stem`` makes them, or irregular forms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTION_WORDS: Final = _words(
    """
    a an the this that these those it its he him his she her hers they them their theirs we us our i
    me my you your yours who whom whose which what when where how why there here one ones some any
    someone somebody something certain of in on at to from by with for into onto out off up down as
    than then so if or and but nor while whether is are was were be been being am do does did done
    has have had having will would shall should can could may might must not no yes also too very
    just only both each every all own same such about over under between among through during per
    s t re ve ll d m let much many far long however still now together altogether alone total
    it's that's what's there's isn't don't aren't doesn't who's
    """
)
TASK_WORDS: Final = _words("""
    get please following answer question problem solve solution give show explain think step
    carefully find calculate compute determine work evaluate write define implement create build
    produce make made code come say tell name know want ask use using call named whatever mean
    """)
"""What tells the reader to answer; only in these forms: "finds" and "made by" may be the story."""
STOPWORDS: Final = FUNCTION_WORDS | (TASK_WORDS - {"mean"})
"""Words that say nothing about what is asked of whom."""

COMMON: Final = _words("""
    number value amount time day week month year hour minute second metre kilometre centimetre
    litre dollar euro cent pay cost sell buy take leave more less first last next new old big small
    great high low sum result equal piece part people person child function string list array text
    word file return program integer large size start end need hold contain point line
    """)
"""Content words found in problems of every kind."""

_SAME: Final = """
buy bought purchase acquire | sell sold | give gave given hand | eat ate eaten consume
begin began begun start commence depart departure | leave left remain rest remainder
pay paid spend spent | cost price charge expense | earn income wage salary | money cash
quick fast rapid speed velocity pace swift | slow | average mean
child children kid pupil student youngster schoolchild | people person persons man men woman women
car automobile vehicle | bike bicycle cycle cyclist biker cycling | bus coach | train locomotive
plane airplane aeroplane aircraft | boat ship vessel | drive drove driven
way journey trip tour travel excursion route voyage distance | road street
metre meter | kilometre kilometer km | centimetre centimeter cm | litre liter | gram gramme
kilogram kg kilo | hour hr | minute min | second sec | mile mph | dollar usd buck | euro eur
percent percentage pct % | cent penny pennies
big large great maximum maximal max most | small little tiny minimum minimal min least
tall height high | deep depth | wide width broad breadth | length lengthy | heavy weight weigh
old age aged | young | sum total add plus added addition | subtract minus subtraction deduct
multiply product multiplied multiplication | divide quotient divisible division divided
differ difference | double twice | triple thrice | half halve halves | quarter fourth
probability chance likely likelihood probable odd | die dice | toss flip throw threw thrown
draw drew drawn pick | roll rolled | colour color | equal identical equally alike
way manner | arrange arrangement order ordered ordering permutation | choose chose chosen select
side edge | square squared | circle circular | angle corner | area surface
number digit numeral | integer whole | consecutive successive row | solve solution satisfy root
function method procedure routine | string text | list array sequence | integer int
return yield output | print display | check test verify examine | count tally
reverse backward backwards reversed | sort order sorted | merge combine join | remove delete
duplicate repeated repetition | element item entry entries | index position
file document | folder directory | script program | regex regexp regular | lower lowercase
upper uppercase | letter character char | word term | match recognise recognize
country nation state | city town | author writer wrote written write | paint painter painted
discover discovery discoverer | compose composer | invent inventor invention | play drama
long longest length | short shortest brief | contain hold contents include capacity
fill filled full | empty emptied drained | whole entire complete altogether
begin open | build built construct erect | bake baked | borrow lend lent loan | receive got
day daily | week weekly | month monthly | year annual annually yearly | morning | night
job worker | house home | shop store | meal dinner | book novel | page
cookie biscuit | candy sweet | ticket admission | present gift | worth value
"""

MORE: Final = _words("gain find receive get buy earn add win collect pick plus grow increase join")
LESS: Final = _words(
    "lose sell give spend eat drop subtract pay donate break minus leave decrease shrink"
)
"""Whether what a number counts comes or goes."""

PHRASES: Final = (
    ("take away", "subtract"),
    ("takes away", "subtract"),
    ("taken away", "subtracted"),
    ("how likely", "probability"),
    ("how old", "age"),
    ("how far", "distance"),
    ("how fast", "speed"),
    ("how tall", "height"),
    ("add up to", "sum"),
    ("adds up to", "sum"),
    ("greatest common divisor", "gcd"),
    ("greatest common factor", "gcd"),
    ("highest common factor", "gcd"),
    ("least common multiple", "lcm"),
    ("lowest common multiple", "lcm"),
    ("regular expression", "regex"),
    ("km/h", "kilometre hour"),
    ("mph", "mile hour"),
    ("two times", "twice"),
    ("three times", "thrice"),
    ("in a row", "consecutive"),
    ("at least", "atleast"),
    ("at most", "atmost"),
)
"""What a phrase says in one word."""

IRREGULAR: Final = {
    "ran": "run",
    "went": "go",
    "gone": "go",
    "goes": "go",
    "swam": "swim",
    "fell": "fall",
    "fallen": "fall",
    "held": "hold",
    "kept": "keep",
    "lost": "lose",
    "took": "take",
    "taken": "take",
    "won": "win",
    "saw": "see",
    "seen": "see",
    "told": "tell",
    "brought": "bring",
    "rose": "rise",
    "risen": "rise",
    "grew": "grow",
    "grown": "grow",
    "feet": "foot",
    "leaves": "leave",
    "leaf": "leaf",
    "best": "good",
    "better": "good",
    "further": "far",
    "farther": "far",
    "mice": "mouse",
    "geese": "goose",
    "lives": "live",
    "wives": "wife",
    "knives": "knife",
    "loaves": "loaf",
    "shelves": "shelf",
    "taught": "teach",
    "thought": "think",
    "caught": "catch",
    "rode": "ride",
    "ridden": "ride",
    "broke": "break",
    "broken": "break",
    "spoke": "speak",
    "stood": "stand",
    "sat": "sit",
    "met": "meet",
    "lying": "lie",
    "laid": "lay",
    "knew": "know",
    "known": "know",
    "flew": "fly",
    "flown": "fly",
    "drank": "drink",
    "drunk": "drink",
    "sang": "sing",
    "shook": "shake",
    "cut": "cut",
}


def synonyms(stem: Callable[[str], str]) -> dict[str, str]:
    """Word and stem of every synonym, to the first word of its group."""
    made: dict[str, str] = {}
    for group in _groups(_SAME):
        for word in group:
            made.setdefault(word, group[0])
            made.setdefault(stem(word), group[0])
    return made


def _groups(text: str) -> list[list[str]]:
    parts = text.replace("\n", "|").split("|")
    return [group for part in parts if (group := part.split())]
