"""No held-out problem gets through; other problems do."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.collect.heldout import HeldOutIndex
from opsd.daemon.types.pairs import SuiteItem


def index(*prompts: str) -> HeldOutIndex:
    items = [SuiteItem(str(n), prompt, "numeric", "1") for n, prompt in enumerate(prompts)]
    return HeldOutIndex({"suite": items})


def test_spellings_of_one_problem() -> None:
    held = index("Compute 3 + 4 * 12.", "61-40-19")
    for prompt in (
        "compute 3+4*12",
        "COMPUTE  3 +4* 12 !",
        "Com\u00adpute 3 + 4 * 12",
        "\uff13+4*12".join(["compute ", ""]),
        "61 - 40 - 19",
    ):
        assert held.is_held_out(prompt) == "suite", prompt


def test_another_number_or_operator_is_another_problem() -> None:
    held = index("Compute 3 + 4 * 12.", "61-40-19")
    for prompt in (
        "Compute 3 + 4 * 13.",
        "Compute 3 + 4 + 12.",
        "Compute 3 + 4 * 1 2.",
        "Compute 3 + 4 * 1.2",
        "61-40-1",
        "61-40-19-3",
        "",
    ):
        assert held.is_held_out(prompt) is None, prompt


def test_a_long_problem_is_found_inside_another() -> None:
    problem = "A train leaves at nine and runs at 80 km/h; when has it gone 240 km?"
    held = index(problem)
    assert held.is_held_out(f"Please solve this: {problem} Think hard.") == "suite"
    assert held.is_held_out(problem.replace("240", "250")) is None


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_every_item_is_held_out_itself(prompt: str) -> None:
    assert index(prompt).is_held_out(prompt) == "suite"
    assert index(prompt).is_held_out(f"  {prompt}\n") == "suite"


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_sums_are_the_same_only_with_the_same_numbers(one: int, other: int) -> None:
    held = index(f"What is {one} + 5?")
    assert (held.is_held_out(f"what is {other}+5") == "suite") == (one == other)
