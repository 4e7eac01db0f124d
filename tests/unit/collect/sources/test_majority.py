"""When a majority stands for an answer, and when nothing is said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.collect.sources.majority import (
    AgreementRule,
    Group,
    agree,
    answer_of,
    group,
    wilson_lower_bound,
)
from opsd.daemon.types.pairs import Verdict, VerdictKind
from opsd.daemon.verify.checks import check_numeric

RULE = AgreementRule(confidence=0.95, margin=0.25)


def groups(*sizes: int) -> list[Group]:
    found, next_index = [], 0
    for number, size in enumerate(sizes):
        found.append(Group(str(number), list(range(next_index, next_index + size))))
        next_index += size
    return found


class Numbers:
    def __init__(self) -> None:
        self.calls = 0

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        self.calls += 1
        kind, evidence = check_numeric(reference, text or "")
        return Verdict(kind, verifier, evidence)


class OneWay:
    """Takes anything where the reference is a set."""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        passed = "{" in reference
        return Verdict(VerdictKind.PASS if passed else VerdictKind.FAIL, verifier, "")


@pytest.mark.parametrize(
    ("sizes", "samples", "accepted", "why"),
    [
        ((16,), 16, True, "16 of 16 samples agree"),
        ((12, 2, 2), 16, True, "12 of 16"),
        ((9, 7), 16, False, "a lead of 0.12"),
        ((6, 2), 8, False, "may be 0.46"),  # the lead is wide enough, the samples too few
        ((4,), 16, True, "4 of 16"),  # lead 0.25, nobody against
        ((3,), 16, False, "a lead of 0.19"),  # the others had no answer
        ((), 16, False, "none of 16"),
    ],
)
def test_a_majority_needs_a_lead_and_confidence(
    sizes: tuple[int, ...], samples: int, accepted: bool, why: str
) -> None:
    found = agree(samples, groups(*sizes), RULE)
    assert found.accepted is accepted
    assert why in found.why
    assert found.votes == sum(sizes)


@given(st.lists(st.integers(1, 40), max_size=6), st.integers(0, 20))
def test_what_is_accepted_leads(sizes: list[int], silent: int) -> None:
    sizes.sort(reverse=True)
    samples = sum(sizes) + silent
    found = agree(samples, groups(*sizes), RULE)
    if found.accepted:
        second = sizes[1] if len(sizes) > 1 else 0
        assert sizes[0] - second >= RULE.margin * samples
        assert found.lower_bound > 0.5
    # Another silent sample never helps.
    assert found.accepted or not agree(samples + 1, groups(*sizes), RULE).accepted


def test_wilsons_bound() -> None:
    # Wilson (1927) at z = 1.6449, worked out by hand.
    assert wilson_lower_bound(5, 5, 0.95) == pytest.approx(0.64890, abs=1e-4)
    assert wilson_lower_bound(10, 13, 0.95) == pytest.approx(0.54193, abs=1e-3)
    assert wilson_lower_bound(0, 0, 0.95) == 0.0


@pytest.mark.parametrize(
    ("verifier", "text", "answer"),
    [
        ("math", "so \\boxed{3}. No, \\boxed{4}", "4"),
        ("numeric", "it is\nAnswer: 7 apples", "7 apples"),
        ("math", "that makes 12 of them", "12"),
        ("numeric", "I do not know", None),
        ("exact", "Paris", "Paris"),
        ("exact", "x" * 300, None),
        ("math", "<think>4 and then", None),
        ("math", "", None),
    ],
)
def test_which_answer_a_sample_votes_for(verifier: str, text: str, answer: str | None) -> None:
    assert answer_of(verifier, text) == answer


async def test_equal_answers_are_one_group_however_they_are_written() -> None:
    judge = Numbers()
    answers = ["1/2", "0.5", None, "3", "50%", "1/2"]
    found = await group(judge, "numeric", answers)
    assert [(known.answer, known.members) for known in found] == [
        ("1/2", [0, 1, 4, 5]),
        ("3", [3]),
    ]
    # The same text is not asked about.
    asked = judge.calls
    await group(judge, "numeric", ["7"] * 50)
    assert judge.calls == asked


async def test_answers_that_pass_one_way_only_are_not_the_same() -> None:
    found = await group(OneWay(), "math", ["{1, 2}", "1"])
    assert [known.members for known in found] == [[0], [1]]
