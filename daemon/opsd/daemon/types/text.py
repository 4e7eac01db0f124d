"""Normal form of problem texts, for comparing training data with held-out items."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_NOT_A_WORD = re.compile(r"[^\w+\-*/=<>^.%]+")
_LOOSE_DOT = re.compile(r"\.(?!\d)")


def normalise_prompt(prompt: str) -> str:
    """Folds case, Unicode compatibility forms, white space and punctuation.

    Digits and operators stay: in templated problem sets a number is all that tells two problems
    apart.
    """
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    return " ".join(_NOT_A_WORD.sub(" ", _LOOSE_DOT.sub(" ", folded)).split())


def prompt_key(prompt: str) -> str:
    """SHA-256 of the normal form, hexadecimal."""
    return hashlib.sha256(normalise_prompt(prompt).encode()).hexdigest()
