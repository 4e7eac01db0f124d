"""What held-out evaluation measures, before anything is decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from opsd.daemon.types.gate import SuiteRole


class Arm(StrEnum):
    """Who answered."""

    BASE = "base"
    INCUMBENT = "incumbent"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True)
class AnswerRecord:
    """One answer to one item, as measured; everything that the gate decides on is in here.

    ``entropy`` and ``kl_to_base`` are means over the answer's tokens in nats, None where they were
    not measured. ``repetition`` is the share of the answer's word 4-grams that occurred before in
    it, in [0, 1].
    """

    solved: bool | None  # None: it could not be told
    tokens: int
    truncated: bool = False
    words: int = 0
    markers: int = 0  # epistemic markers ("wait", "maybe"), see gate.behaviour.markers
    repetition: float = 0.0
    formatted: bool = True  # the verifier found an answer where one is to be
    refusal: bool = False
    entropy: float | None = None
    kl_to_base: float | None = None


@dataclass(frozen=True, slots=True)
class ItemMeasured:
    """All answers to one item: the same number of samples from each arm, drawn with one seed each.

    Where the incumbent is base, ``answers`` has no BASE of its own.
    """

    id: str
    answers: Mapping[Arm, tuple[AnswerRecord, ...]]
    stratum: str = ""
    cluster: str = ""  # items with one name here are not independent; "": alone
    with_reference: Mapping[Arm, AnswerRecord] = field(default_factory=dict)  # literacy


@dataclass(frozen=True, slots=True)
class SuiteMeasured:
    """One suite's measurement.

    ``num_uses`` counts the earlier gates that decided on its most used item. A suite that cannot be
    used (a sealed one whose budget is spent) has no items, and ``unusable`` says why.
    """

    name: str
    version: str
    sha256: str
    role: SuiteRole
    margin: float
    items: tuple[ItemMeasured, ...]
    stratum_margin: float = 0.0
    sealed: bool = False
    num_uses: int = 0
    unusable: str = ""
