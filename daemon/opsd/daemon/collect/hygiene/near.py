"""Near-duplicates among pairs: MinHash over word shingles (Broder, 1997), in bands (LSH).

The store keeps a prompt's band keys. Two prompts with a key in common are worth comparing; whether
they are near-duplicates, ``is_near_duplicate`` says exactly. Keys are for ever: stored ones must
be those that a later version makes.
"""

from __future__ import annotations

import hashlib
import re
import struct
from functools import lru_cache
from typing import Any, Final

import numpy as np
from datasketch import MinHash

from opsd.daemon.collect.hygiene.words import number_value, visible, without_labels
from opsd.daemon.types.text import normalise_prompt

NUM_BANDS: Final = 8
ROWS: Final = 4
"""Hash values in a band. At Jaccard 0.75 two prompts share a key with probability 0.95, at 0.9
with 0.9999, at 0.3 with 0.06."""
THRESHOLD: Final = 0.75
"""Jaccard coefficient of shingles from which two prompts are near-duplicates."""

_SEED: Final = 1
_TOKEN = re.compile(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[-+*/=^%<>]")
_OPERATORS = frozenset("-+*/=^%<>")


def band_keys(prompt: str) -> tuple[int, ...]:
    """``NUM_BANDS`` signed 64-bit keys.

    Each also covers the numbers and operators in their order: problems that differ in one of them
    are different problems, and share no key.
    """
    shingles, signs = _form(prompt)
    hashes = _min_hash(shingles).hashvalues
    keys = []
    for band in range(NUM_BANDS):
        rows = np.ascontiguousarray(hashes[band * ROWS : (band + 1) * ROWS], dtype="<u8")
        digest = hashlib.blake2b(bytes([band]) + rows.tobytes() + signs, digest_size=8).digest()
        keys.append(struct.unpack("<q", digest)[0])
    return tuple(keys)


def is_near_duplicate(a: str, b: str) -> bool:
    """Whether two prompts have the same numbers and operators in the same order, and shingles with
    a Jaccard coefficient of at least ``THRESHOLD``."""
    shingles_a, signs_a = _form(a)
    shingles_b, signs_b = _form(b)
    if signs_a != signs_b:
        return False
    union = len(shingles_a | shingles_b)
    return len(shingles_a & shingles_b) >= THRESHOLD * union


def _form(prompt: str) -> tuple[frozenset[bytes], bytes]:
    """Shingles (single words and neighbours), and the numbers and operators."""
    tokens = [
        number_value(token) if token[0].isdigit() else token
        for token in _TOKEN.findall(normalise_prompt(without_labels(visible(prompt))))
    ]
    signs = [token for token in tokens if token[0].isdigit() or token in _OPERATORS]
    # A hyphen between words is an operator only where numbers are.
    if not any(sign[0].isdigit() for sign in signs):
        signs = []
    words = [token.encode() for token in tokens]
    pairs = [one + b" " + other for one, other in zip([b"^", *words], words, strict=False)]
    return frozenset([*words, *pairs]), " ".join(signs).encode()


def _min_hash(shingles: frozenset[bytes]) -> MinHash:
    made = MinHash(num_perm=NUM_BANDS * ROWS, seed=_SEED, scheme="legacy", **_permutations())
    made.update_batch(sorted(shingles))
    return made


@lru_cache(1)
def _permutations() -> dict[str, Any]:
    made = MinHash(num_perm=NUM_BANDS * ROWS, seed=_SEED, scheme="legacy")
    return {"permutations": made.permutations}
