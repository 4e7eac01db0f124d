"""Near-duplicates share a band key; problems that differ in a number or operator never do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.collect.hygiene.near import NUM_BANDS, band_keys, is_near_duplicate

PROBLEM = (
    "A baker makes 12 trays of rolls with 24 rolls on each tray. He sells 200 rolls in the "
    "morning. How many rolls does he have left?"
)
GOLDEN = (
    3030293092069817384,
    -3374615561460994815,
    7802906564122094192,
    6841268500734612424,
    5425898722547479343,
    -7081649728713585521,
    -5027030779574831373,
    969829342653496976,
)


def share_a_key(one: str, other: str) -> bool:
    keys = zip(band_keys(one), band_keys(other), strict=True)
    return any(mine == theirs for mine, theirs in keys)


def test_keys_stay_what_they_are_for_they_are_stored() -> None:
    assert band_keys("What is 3 + 4?") == GOLDEN
    assert len(GOLDEN) == NUM_BANDS
    assert all(-(2**63) <= key < 2**63 for key in GOLDEN)


def test_near_duplicates_are_found() -> None:
    for other in (
        PROBLEM.upper(),
        f"Q7. {PROBLEM}",
        PROBLEM.replace("He sells", "Then he sells"),
        PROBLEM.replace("morning", "evening"),
    ):
        assert share_a_key(PROBLEM, other), other
        assert is_near_duplicate(PROBLEM, other), other


def test_other_numbers_operators_or_words_are_another_problem() -> None:
    for other in (
        PROBLEM.replace("200", "201"),
        PROBLEM.replace("12", "24", 1).replace("24 rolls", "12 rolls", 1),
        "A farmer has 12 cows, 24 sheep and 200 hens. How many legs have they together?",
    ):
        assert not is_near_duplicate(PROBLEM, other), other
    for one, other in (("Compute 3+4*12", "Compute 3+4+12"), ("61-40-19", "61-40-1")):
        assert not share_a_key(one, other)
        assert not is_near_duplicate(one, other)


def test_a_changed_number_never_shares_a_key() -> None:
    assert not share_a_key(PROBLEM, PROBLEM.replace("200", "201"))


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(one: str, other: str) -> None:
    assert band_keys(one) == band_keys(one)
    assert is_near_duplicate(one, one)
    assert is_near_duplicate(one, other) == is_near_duplicate(other, one)
