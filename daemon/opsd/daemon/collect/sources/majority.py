"""Whether samples of one problem agree enough that their majority may stand for its answer.

Self-consistency (Wang et al., 2022, arXiv 2203.11171) takes the most frequent answer; here it is
taken only where it leads clearly, and nothing is said otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Protocol

from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.verify.extract import NoAnswerError, extract
from opsd.daemon.verify.numbers import last_number

MAX_ANSWER_CHARS = 256
"""A longer text is no answer that others could agree with."""


class Judge(Protocol):
    """The verifiers, in their processes."""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict: ...


@dataclass(slots=True)
class Group:
    """Samples whose answers are the same; ``answer`` is the first one's."""

    answer: str
    members: list[int] = field(default_factory=list)  # indices of samples, ascending


@dataclass(frozen=True, slots=True)
class AgreementRule:
    """``margin``: lead over the runner-up as a share of all samples, in [0, 1]."""

    confidence: float
    margin: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the samples say. ``lower_bound``: of the majority's share among the votes for it and for
    the runner-up (Wilson's score interval, one-sided)."""

    samples: int
    votes: int  # samples with an answer
    groups: tuple[Group, ...]  # largest first
    lower_bound: float
    margin: float
    accepted: bool
    why: str

    @property
    def majority(self) -> Group | None:
        return self.groups[0] if self.groups else None


def answer_of(verifier: str, text: str) -> str | None:
    """The answer that a sample votes for; None: it has none.

    The marked one (``verify.extract``); without one, the last number for ``math`` and ``numeric``,
    and the whole of a short text for the others.
    """
    try:
        found = extract(text)
    except NoAnswerError:
        return None
    answer = found.text.strip()
    if not found.marked and verifier in ("math", "numeric"):
        number, _ = last_number(answer)
        if number is None:
            return None
        answer = str(number)
    return answer if 0 < len(answer) <= MAX_ANSWER_CHARS else None


async def group(judge: Judge, verifier: str, answers: Sequence[str | None]) -> list[Group]:
    """Samples by answer, largest group first, the earlier first among equals.

    An answer joins the first group whose answer is the same text, or else passes as an answer where
    the other is the reference and the other way round: one direction alone would let "x = 2 or 3"
    take in what only the looser one accepts.
    """
    groups: list[Group] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        home = next((known for known in groups if known.answer == answer), None)
        if home is None:
            for known in groups:
                if await _same(judge, verifier, known.answer, answer):
                    home = known
                    break
        if home is None:
            home = Group(answer)
            groups.append(home)
        home.members.append(index)
    return sorted(groups, key=lambda known: (-len(known.members), known.members[0]))


async def _same(judge: Judge, verifier: str, one: str, other: str) -> bool:
    for reference, answer in ((one, other), (other, one)):
        verdict = await judge.verify(verifier, reference, f"\\boxed{{{answer}}}")
        if verdict.kind is not VerdictKind.PASS:
            return False
    return True


def agree(samples: int, groups: Sequence[Group], rule: AgreementRule) -> Agreement:
    """Accepts the largest group when, at once,

    - it leads the second largest by at least ``rule.margin`` of all samples, and
    - with m votes against the runner-up's r, Wilson's lower bound (one-sided, at
      ``rule.confidence``) of m / (m + r) is above one half.

    Samples without an answer count against the margin. Which answer leads is seen from the same
    samples, so with several rivals of equal frequency the bound is optimistic; the margin is what
    guards there. Agreement is not truth: a model may be wrong the same way each time.
    """
    sizes = [len(known.members) for known in groups] + [0, 0]
    first, second = sizes[0], sizes[1]
    votes = sum(sizes)
    margin = (first - second) / samples if samples else 0.0
    bound = wilson_lower_bound(first, first + second, rule.confidence)
    if not first:
        why = f"none of {samples} samples has an answer"
    elif margin < rule.margin:
        why = (
            f"{first} of {samples} samples agree and {second} on the runner-up: a lead of "
            f"{margin:.2f}, less than {rule.margin:g}"
        )
    elif bound <= 0.5:
        why = (
            f"{first} against {second} of {samples} samples: the share of the first may be "
            f"{bound:.2f}, not more than half"
        )
    else:
        why = ""
    return Agreement(
        samples=samples,
        votes=votes,
        groups=tuple(groups),
        lower_bound=bound,
        margin=margin,
        accepted=not why,
        why=why or f"{first} of {samples} samples agree, {second} on the runner-up",
    )


def wilson_lower_bound(successes: int, trials: int, confidence: float) -> float:
    """One-sided lower bound of a proportion (Wilson, 1927); 0 without trials."""
    if not trials:
        return 0.0
    z = NormalDist().inv_cdf(confidence)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return (centre - spread) / (1 + z * z / trials)
