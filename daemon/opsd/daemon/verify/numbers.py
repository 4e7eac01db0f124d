"""Reading one number, exactly, from LaTeX or plain text."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARS = 200
"""A longer number is not read: nobody's answer is, and big powers cost time and memory."""
MAX_EXPONENT = 400
TAIL_CHARS = 4000

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+|\d+)"
_DECIMAL = rf"(?:{_PLAIN}(?:\.\d+)?|\.\d+)"
_POWER_OF_TEN = r"10\s*(?:\^|\*\*)\s*(?:\{\s*(?P<p1>[+-]?\d{1,4})\s*\}|(?P<p2>[+-]?\d{1,4}))"
_NUMBER = re.compile(
    rf"""
    (?P<sign>[+-]?)\s*
    (?:
        (?P<whole>\d+)\s+(?P<mixed_over>\d+)\s*/\s*(?P<mixed_under>\d+)
      | (?P<over>{_DECIMAL})\s*/\s*(?P<under>{_DECIMAL})
      | {_POWER_OF_TEN}
      | (?P<decimal>{_DECIMAL})
        (?: [eE](?P<e1>[+-]?\d{{1,4}})
          | \s*(?:×|\*|x)\s*10\s*(?:\^|\*\*)\s*
            (?:\{{\s*(?P<e2>[+-]?\d{{1,4}})\s*\}}|(?P<e3>[+-]?\d{{1,4}}))
        )?
    )
    \s*(?P<percent>%|percent\b)?
    """,
    re.VERBOSE,
)
_CURRENCY = "$€£¥₹"
# A unit is up to three words; these words change the number or make it one guess of several.
_UNIT = re.compile(
    r"(?:\s*(?:°|µ|μ)?[A-Za-zΩ][A-Za-z²³]*(?:\s*(?:/|\^)\s*\{?[A-Za-z0-9²³]+\}?){0,2}){0,3}"
)
_NOT_UNITS_TEXT = """
    and or not nor either maybe perhaps about around between to than plus minus times over
    mod pi e i x y z n a b k hundred thousand million billion trillion dozen half third
    quarter quarters squared cubed more less inf infinity nan
"""
_NOT_UNITS = frozenset(_NOT_UNITS_TEXT.split())
# In running text only what is written together, or alone: "3 m and", "3 km/h.", not "3 m wide".
_FOLLOWING = re.compile(
    r"[ ]?(?:[A-Za-zµμΩ]+(?:²|³|\^\{?[23]\}?)?"
    r"(?:/[A-Za-zµμ]+(?:²|³|\^\{?[23]\}?)?)?)(?![A-Za-z0-9])"
)
_LEADING_NAME = re.compile(r"[A-Za-z](?:_?\{?\w{1,3}\}?)?\s*=\s*")
_BOUNDED = re.compile(
    rf"(?<![\w.,^/\\])(?<![\^_]\{{)(?:{_NUMBER.pattern})(?![\w^/]|[.,]\d)", re.VERBOSE
)

_CHARACTERS = str.maketrans({"−": "-", "–": "-", "⁄": "/", "∕": "/", "·": "×", "⋅": "×"})  # noqa: RUF001
_LATEX = (
    (re.compile(r"\\[dt]frac"), r"\\frac"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (
        re.compile(r"(\d)?\s*\\frac\s*\{\s*([^{}]{1,40}?)\s*\}\s*\{\s*([^{}]{1,40}?)\s*\}"),
        r"\1 \2/\3",
    ),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])"), " × "),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]{0,80})\}"), r" \1"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([%$#&])"), r"\1"),
    (re.compile(r"\\[,!;: ]|~|\\(?:left|right|displaystyle|quad)(?![A-Za-z])"), " "),
    (re.compile(r"\\[()\[\]]"), " "),
)
_GROUPING_SPACE = re.compile("(?<=\\d)[\u00a0\u2009\u202f](?=\\d{3})")


@dataclass(frozen=True, slots=True)
class Number:
    """``decimals`` are the digits after the point as written; None for what is written exactly.

    ``unit`` are the words behind it, whatever they mean.
    """

    value: Fraction
    is_percent: bool
    decimals: int | None
    unit: str = ""

    def __str__(self) -> str:
        text = str(self.value)
        return f"{text}%" if self.is_percent else text


def read_number(text: str) -> Number | None:
    """The number that ``text`` as a whole stands for; None when it is anything else.

    Around the number there may be a currency sign, a name (``x =``) and a unit of up to three
    words.
    """
    plain = _plain(text.strip()).strip(" *_`").removesuffix(".").strip("$ *_`").removesuffix(".")
    plain = _LEADING_NAME.sub("", plain, count=1) if _LEADING_NAME.match(plain) else plain
    sign, plain = ("-", plain[1:]) if re.match(rf"-\s*[{_CURRENCY}]", plain) else ("", plain)
    plain = sign + plain.strip().lstrip(_CURRENCY).strip()
    if len(plain) > MAX_CHARS:
        return None
    match = _NUMBER.match(plain)
    if match is None or not _is_unit(plain[match.end() :], separated=match["percent"] is None):
        return None
    return _number(match, plain[match.end() :])


def last_number(text: str) -> tuple[Number | None, str]:
    """The last number in running text, and the words it was found in.

    None when there is none, or when the last digits of the text are part of something else (a word,
    a power, a date): which number was meant is then a guess.
    """
    plain = _plain(text[-TAIL_CHARS:])
    digits = [place for place in range(len(plain)) if plain[place].isdigit()]
    if not digits:
        return None, ""
    last = digits[-1]
    shown = plain[max(0, last - 30) : last + 10].strip()
    start = max(0, last - MAX_CHARS)
    for match in _BOUNDED.finditer(plain, start):
        if match.start() <= last < match.end():
            return _number(match, _following_unit(plain, match.end())), shown
    return None, shown


def _plain(text: str) -> str:
    """LaTeX and typographic spellings as plain ones; without full compatibility folding, which
    would turn 10² into 102."""
    plain = "".join(_digit(character) for character in text).translate(_CHARACTERS)
    plain = _GROUPING_SPACE.sub(",", plain)
    for pattern, replacement in _LATEX:
        plain = pattern.sub(replacement, plain)
    return plain


def _digit(character: str) -> str:
    if character.isascii():
        return character
    folded = unicodedata.normalize("NFKC", character)
    if "\u2044" in folded:  # ½ and its kin: a fraction that may follow a whole number
        return " " + folded
    if unicodedata.category(character) == "Nd":
        return str(unicodedata.digit(character))
    return character


def _is_unit(rest: str, *, separated: bool) -> bool:
    if not rest.strip():
        return True
    if not separated or _UNIT.fullmatch(rest) is None:
        return False
    words = re.findall(r"[A-Za-z]+", rest.lower())
    return not _NOT_UNITS.intersection(words)


def _following_unit(plain: str, end: int) -> str:
    match = _FOLLOWING.match(plain, end)
    return match[0] if match else ""


def _number(match: re.Match[str], unit: str = "") -> Number | None:
    if len(match[0]) > MAX_CHARS:
        return None
    decimals: int | None = None
    if match["whole"] is not None:
        under = int(match["mixed_under"])
        if under == 0:
            return None
        value = int(match["whole"]) + Fraction(int(match["mixed_over"]), under)
    elif match["over"] is not None:
        divisor = _decimal(match["under"])
        if divisor == 0:
            return None
        value = _decimal(match["over"]) / divisor
    else:
        exponent = int(
            next((match[name] for name in ("p1", "p2", "e1", "e2", "e3") if match[name]), "0")
        )
        if abs(exponent) > MAX_EXPONENT:
            return None
        written = match["decimal"] or "1"
        value = _decimal(written) * Fraction(10) ** exponent
        places = len(written.partition(".")[2]) - exponent
        decimals = places if places > 0 else None
    if match["sign"] == "-":
        value = -value
    return Number(value, match["percent"] is not None, decimals, unit.strip())


def _decimal(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))
