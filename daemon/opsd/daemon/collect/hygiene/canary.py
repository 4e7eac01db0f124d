"""Leak canaries: strings planted in privileged context that must never appear in unaided output.

Where a model that saw only problems writes a canary, what the teacher alone was to see has leaked
into it. Canaries come from a secret, so nothing but the secret is kept: which pair carries which
one follows from the pair's id. A ring of ``NUM_CANARIES`` is shared by all carriers, so that each
is seen often enough to show itself.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection
from typing import Final

from prometheus_client import Counter

NUM_CANARIES: Final = 64
NUM_SYMBOLS: Final = 24
WINDOW_SYMBOLS: Final = 12
"""So many symbols of a canary in a row are a leak: chance has 1 in 184^6, about 10^13.6."""
MIN_SECRET_BYTES: Final = 16

LEAKS = Counter(
    "opsd_canary_leaks_total", "Canaries found where they must never be, by place.", ["place"]
)

_LETTERS: Final = "ABCDEFGHJKLMNPQRTUVWXYZ"  # no I, O, S, which look like digits
_DIGITS: Final = "23456789"
# Letters and digits in turn hardly ever stand so in other texts: the search runs past those fast.
_RUN = re.compile(
    rf"(?:[A-HJ-NP-RT-Za-hj-np-rt-z][\W_]{{0,3}}[2-9][\W_]{{0,3}}){{{WINDOW_SYMBOLS // 2},}}"
)
_BETWEEN = re.compile(r"[\W_]+")


def make_canaries(secret: bytes, count: int = NUM_CANARIES) -> tuple[str, ...]:
    """``count`` canaries such as ``K7Q2-M4X9-…``: the same for the same secret.

    Raises ValueError for a secret of fewer than ``MIN_SECRET_BYTES``.
    """
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(
            f"the canaries' secret has {len(secret)} bytes: at least {MIN_SECRET_BYTES} are needed"
        )
    return tuple(_canary(secret, number) for number in range(count))


def plant(solution: str, canary: str) -> str:
    """The solution with the canary on a line of its own at the end."""
    return f"{solution}\n[{canary}]"


class CanaryPlan:
    """Which pairs carry which canary; the same for the same secret and share."""

    def __init__(self, secret: bytes, fraction: float) -> None:
        """``fraction`` in [0, 1] is the share of pairs that carry one."""
        self._secret = secret
        self._limit = round(fraction * 2**32)
        self.canaries = make_canaries(secret)

    def canary_of(self, pair_id: str) -> str | None:
        digest = hmac.digest(self._secret, b"pair " + pair_id.encode(), "sha256")
        if int.from_bytes(digest[:4], "big") >= self._limit:
            return None
        return self.canaries[int.from_bytes(digest[4:8], "big") % len(self.canaries)]

    def planted(self, pair_id: str, solution: str) -> str:
        """The solution as the teacher is to see it; never where it is a target to be imitated."""
        canary = self.canary_of(pair_id)
        return solution if canary is None else plant(solution, canary)


class CanaryScanner:
    """Finds canaries in output, also cut short, in lower case, or with other signs in between."""

    def __init__(self, canaries: Collection[str]) -> None:
        self._windows: dict[str, str] = {}
        for canary in canaries:
            symbols = _BETWEEN.sub("", canary).upper()
            for start in range(0, len(symbols) - WINDOW_SYMBOLS + 1, 2):
                self._windows[symbols[start : start + WINDOW_SYMBOLS]] = canary

    def find(self, text: str) -> tuple[str, ...]:
        """The canaries of which a part stands in the text, each once. Linear in the text."""
        found: dict[str, None] = {}
        for run in _RUN.finditer(text):
            symbols = _BETWEEN.sub("", run[0]).upper()
            for start in range(0, len(symbols) - WINDOW_SYMBOLS + 1, 2):
                canary = self._windows.get(symbols[start : start + WINDOW_SYMBOLS])
                if canary is not None:
                    found[canary] = None
        return tuple(found)

    def count(self, text: str, place: str) -> tuple[str, ...]:
        """``find``, and each that is found counts as a leak at ``place``."""
        found = self.find(text)
        if found:
            LEAKS.labels(place).inc(len(found))
        return found


def _canary(secret: bytes, number: int) -> str:
    stream = hashlib.shake_256(hmac.digest(secret, b"canary %d" % number, "sha256")).digest(
        4 * NUM_SYMBOLS
    )
    symbols = []
    for place in range(NUM_SYMBOLS):
        alphabet = _DIGITS if place % 2 else _LETTERS
        value = int.from_bytes(stream[4 * place : 4 * place + 4], "big")
        symbols.append(alphabet[value % len(alphabet)])
    return "-".join("".join(symbols[start : start + 4]) for start in range(0, NUM_SYMBOLS, 4))
