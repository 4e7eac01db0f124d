"""Canaries are found wherever they come out, and nothing else is taken for one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from opsd.daemon.collect.hygiene.canary import (
    CanaryPlan,
    CanaryScanner,
    make_canaries,
    plant,
)

SECRET = bytes(range(32))
CANARIES = make_canaries(SECRET)
SCANNER = CanaryScanner(CANARIES)


def test_canaries_come_from_the_secret_alone() -> None:
    assert make_canaries(SECRET) == CANARIES
    assert len(set(CANARIES)) == 64
    assert all(re.fullmatch(r"([A-Z][2-9]){2}(-([A-Z][2-9]){2}){5}", one) for one in CANARIES)
    assert not set(CANARIES) & set(make_canaries(SECRET[::-1]))
    with pytest.raises(ValueError, match="at least 16"):
        make_canaries(b"short")


@pytest.mark.parametrize(
    "disguise",
    [
        lambda text: text,
        str.lower,
        lambda text: text.replace("-", " "),
        lambda text: text.replace("-", ""),
        " ".join,
        lambda text: text.replace("-", "\n- "),
        lambda text: text[:17],
        lambda text: text[10:],
        lambda text: f"**{text}**",
    ],
)
def test_a_leak_is_found_in_disguise(disguise) -> None:
    output = f"The answer is 21. {disguise(CANARIES[5])} So it is."
    assert SCANNER.find(output) == (CANARIES[5],)


def test_a_short_piece_is_no_leak() -> None:
    assert SCANNER.find(CANARIES[5][:12]) == ()


def test_several_are_found_each_once() -> None:
    output = plant(plant(f"1 {CANARIES[2]}", CANARIES[9]), CANARIES[2])
    assert SCANNER.find(output) == (CANARIES[2], CANARIES[9])


@given(st.text() | st.from_regex(r"([A-Za-z][2-9]){0,40}", fullmatch=True))
def test_other_text_is_no_leak(text: str) -> None:
    assert SCANNER.find(text) == ()


def test_which_pair_carries_one_follows_from_its_id() -> None:
    ids = [f"pair-{number}" for number in range(20_000)]
    plan = CanaryPlan(SECRET, 0.1)
    carried = {one: canary for one in ids if (canary := plan.canary_of(one))}
    assert 1_800 < len(carried) < 2_200
    assert set(carried.values()) == set(CANARIES)
    again, wider = CanaryPlan(SECRET, 0.1), CanaryPlan(SECRET, 0.2)
    assert all(again.canary_of(one) == carried.get(one) for one in ids)
    assert all(wider.canary_of(one) == canary for one, canary in carried.items())
    none, whole = CanaryPlan(SECRET, 0.0), CanaryPlan(SECRET, 1.0)
    assert not any(none.canary_of(one) for one in ids)
    assert all(whole.canary_of(one) for one in ids)


def test_a_planted_solution_still_says_what_it_said() -> None:
    plan = CanaryPlan(SECRET, 1.0)
    planted = plan.planted("pair-1", "21, 2")
    assert planted.startswith("21, 2\n[")
    assert SCANNER.find(planted) == (plan.canary_of("pair-1"),)
    assert CanaryPlan(SECRET, 0.0).planted("pair-1", "21, 2") == "21, 2"


def test_leaks_are_counted_by_place() -> None:
    def leaks() -> float:
        found = REGISTRY.get_sample_value("opsd_canary_leaks_total", {"place": "test"})
        return found or 0.0

    before = leaks()
    assert SCANNER.count("nothing", "test") == ()
    assert leaks() == before
    SCANNER.count(f"{CANARIES[0]} and {CANARIES[1]}", "test")
    assert leaks() == before + 2
