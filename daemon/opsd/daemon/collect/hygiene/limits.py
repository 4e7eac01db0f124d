"""Texts that are too long, or nothing: lengths, junk, emptiness."""

from __future__ import annotations

import re
import unicodedata
import zlib
from typing import Final

from opsd.daemon.collect.hygiene.words import visible

MIN_COMPRESSED_CHARS: Final = 2000
"""Shorter texts compress badly whatever they say."""
CHARS_PER_TOKEN: Final = 4
"""Of ASCII letters, as byte-pair vocabularies of today have it."""

_PIECE = re.compile(r"[A-Za-z]+|\d|[^\sA-Za-z\d]")
_RULE = frozenset("-=_*#~.+ \t\n|")
"""Signs that make a line or a frame where they are repeated."""


def estimated_tokens(text: str) -> int:
    """About what a byte-pair tokenizer makes of it: a quarter of the letters of each ASCII word,
    rounded up, and one for every digit, sign and other character."""
    return sum(
        -(-len(piece) // CHARS_PER_TOKEN) if piece.isascii() and piece.isalpha() else 1
        for piece in _PIECE.findall(text)
    )


def is_blank(text: str) -> bool:
    """Whether nothing is left of it to be seen: spaces, invisible characters and controls."""
    return not any(
        not character.isspace() and unicodedata.category(character)[0] not in "CZ"
        for character in visible(text)
    )


def longest_run(text: str) -> tuple[str, int]:
    """The letter or sign that is repeated most often in a row, and how often. Digits do not count,
    for a number may have as many zeros as it wants, and neither do signs that rule lines."""
    longest, best = "", 0
    previous, length = "", 0
    for character in text:
        length = length + 1 if character == previous else 1
        previous = character
        if length > best and character not in _RULE and not character.isdigit():
            longest, best = character, length
    return longest, best


def compressed_share(text: str) -> float:
    """Bytes after compression over bytes before, in (0, 1]; 1 for short texts."""
    if len(text) < MIN_COMPRESSED_CHARS:
        return 1.0
    data = text.encode(errors="replace")
    return min(1.0, len(zlib.compress(data, 1)) / len(data))
