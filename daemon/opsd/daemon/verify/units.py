"""Units that a numeric answer may be converted between: a table, and nothing that can be parsed
into more."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_PREFIXES = {
    "p": -12, "n": -9, "µ": -6, "u": -6, "m": -3, "c": -2, "d": -1, "": 0, "h": 2, "k": 3, "M": 6,
    "G": 9, "T": 12,
}  # fmt: skip
_PREFIX_WORDS = {
    "pico": -12, "nano": -9, "micro": -6, "milli": -3, "centi": -2, "deci": -1, "": 0, "kilo": 3,
    "mega": 6, "giga": 9,
}  # fmt: skip
# Symbol, words, dimension, size in the dimension's own unit; all of these take a prefix.
_PREFIXED = (
    ("m", ("meter", "metre"), "length", Fraction(1)),
    ("g", ("gram", "gramme"), "mass", Fraction(1)),
    ("s", ("second",), "time", Fraction(1)),
    ("l", ("liter", "litre"), "volume", Fraction(1, 1000)),
    ("L", (), "volume", Fraction(1, 1000)),
    ("N", ("newton",), "force", Fraction(1)),
    ("J", ("joule",), "energy", Fraction(1)),
    ("W", ("watt",), "power", Fraction(1)),
    ("Pa", ("pascal",), "pressure", Fraction(1)),
    ("Hz", ("hertz",), "frequency", Fraction(1)),
    ("A", ("ampere", "amp"), "current", Fraction(1)),
    ("V", ("volt",), "voltage", Fraction(1)),
    ("Ω", ("ohm",), "resistance", Fraction(1)),
    ("C", ("coulomb",), "charge", Fraction(1)),
    ("mol", ("mole",), "amount", Fraction(1)),
)
_PLAIN = {
    "min": ("time", Fraction(60)),
    "minute": ("time", Fraction(60)),
    "h": ("time", Fraction(3600)),
    "hr": ("time", Fraction(3600)),
    "hour": ("time", Fraction(3600)),
    "sec": ("time", Fraction(1)),
    "d": ("time", Fraction(86400)),
    "day": ("time", Fraction(86400)),
    "week": ("time", Fraction(604800)),
    "t": ("mass", Fraction(10**6)),
    "ton": ("mass", Fraction(10**6)),
    "tonne": ("mass", Fraction(10**6)),
    "ha": ("area", Fraction(10**4)),
    "bar": ("pressure", Fraction(10**5)),
    "eV": ("energy", Fraction(1602176634, 10**28)),
    "Wh": ("energy", Fraction(3600)),
    "kWh": ("energy", Fraction(3_600_000)),
}
_POWERS = {"²": 2, "³": 3, "^2": 2, "^3": 3, "^{2}": 2, "^{3}": 3, "2": 2, "3": 3}
_POWERED = re.compile(r"(?P<base>[A-Za-zµΩ]+?)\s*(?P<power>²|³|\^\s*\{?[23]\}?|(?<=m)[23])?")
_WORDED = re.compile(r"(?P<kind>square|cubic)\s+(?P<base>[A-Za-z]+)")
_SPELLINGS = str.maketrans({"μ": "µ", "Ω": "Ω"})


@dataclass(frozen=True, slots=True)
class Unit:
    """``size`` is how many of the dimension's own unit it is; powers of a length are dimensions."""

    dimension: str
    size: Fraction

    def to(self, other: Unit, value: Fraction) -> Fraction | None:
        """``value`` of this unit in the other; None where the dimensions differ."""
        return value * self.size / other.size if self.dimension == other.dimension else None


def read_unit(text: str) -> Unit | None:
    """None for what is in no table: the units of such an answer are words that say nothing."""
    words = " ".join(text.translate(_SPELLINGS).split()).rstrip(".")
    over, slash, under = words.replace(" per ", "/").partition("/")
    top = _simple(over.strip())
    if not slash or top is None:
        return top
    bottom = _simple(under.strip())
    if bottom is None:
        return None
    return Unit(f"{top.dimension}/{bottom.dimension}", top.size / bottom.size)


def _simple(words: str) -> Unit | None:
    worded = _WORDED.fullmatch(words)
    if worded is not None:
        return _power(_base(worded["base"]), 2 if worded["kind"] == "square" else 3)
    match = _POWERED.fullmatch(words)
    if match is None:
        return None
    power = _POWERS[match["power"].replace(" ", "")] if match["power"] else 1
    return _power(_base(match["base"]), power)


def _power(base: Unit | None, power: int) -> Unit | None:
    if base is None or power == 1:
        return base
    dimension = {("length", 2): "area", ("length", 3): "volume", ("time", 2): "time²"}.get(
        (base.dimension, power)
    )
    return Unit(dimension, base.size**power) if dimension else None


def _base(word: str) -> Unit | None:
    return _UNITS.get(word) or _UNITS.get(word.lower() if len(word) > 3 else word)


def _table() -> dict[str, Unit]:
    found = {word: Unit(*entry) for word, entry in _PLAIN.items()}
    for word, unit in list(found.items()):
        if len(word) > 2:
            found.setdefault(word + "s", unit)
    for symbol, words, dimension, size in _PREFIXED:
        for prefix, exponent in _PREFIXES.items():
            found.setdefault(prefix + symbol, Unit(dimension, size * Fraction(10) ** exponent))
        for prefix, exponent in _PREFIX_WORDS.items():
            for word in words:
                unit = Unit(dimension, size * Fraction(10) ** exponent)
                found.setdefault(prefix + word, unit)
                found.setdefault(prefix + word + "s", unit)
    return found


_UNITS = _table()
