"""No held-out problem gets through; other problems do."""

from __future__ import annotations

import threading

import pytest
from contamination_set import Clean, Half, Planted, make_set
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.collect.hygiene.contamination import HeldOutIndex, Overlap, Renumbered
from opsd.daemon.types.pairs import SuiteItem

TRAIN = "A train leaves at nine and runs at 80 km/h; when has it gone 240 km?"


def suite(*prompts: str) -> list[SuiteItem]:
    return [SuiteItem(str(n), prompt, "numeric", "1") for n, prompt in enumerate(prompts)]


def index(*prompts: str) -> HeldOutIndex:
    return HeldOutIndex({"suite": suite(*prompts)})


def how(held: HeldOutIndex, prompt: str) -> Overlap | None:
    found = held.match(prompt)
    return None if found is None else found.how


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


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_every_item_is_held_out_itself(prompt: str) -> None:
    assert index(prompt).is_held_out(prompt) == "suite"
    assert index(prompt).is_held_out(f"  {prompt}\n") == "suite"


@given(st.integers(0, 9999), st.integers(0, 9999))
def test_sums_are_the_same_only_with_the_same_numbers(one: int, other: int) -> None:
    held = index(f"What is {one} + 5?")
    assert (held.is_held_out(f"what is {other}+5") == "suite") == (one == other)


def test_every_way_is_named() -> None:
    held = index(TRAIN, "Which planet of the solar system has the shortest day?")
    assert how(held, f" {TRAIN}\n") is Overlap.EXACT
    assert how(held, TRAIN.upper()) is Overlap.RECASED
    assert how(held, f"Q7. {TRAIN}") in (Overlap.RECASED, Overlap.CONTAINED)
    assert how(held, f"I wonder. {TRAIN} Thanks!") is Overlap.CONTAINED
    assert how(held, TRAIN.replace("240", "250")) is Overlap.RENUMBERED
    retold = "When has a train that leaves at nine, running at 80 km/h, gone 240 km?"
    assert how(held, retold) is Overlap.REWORDED
    found = held.match("On which planet in our solar system is a day shortest?")
    assert found is not None
    assert (found.suite, found.item_id, found.how) == ("suite", "1", Overlap.REWORDED)
    assert "words" in found.evidence
    assert how(held, "Which planet of the solar system has the most moons?") is None


def test_where_numbers_tell_problems_apart_other_numbers_are_another_problem() -> None:
    template = "Nora puts {} pears into each of {} crates and sells {} crates at the market."
    made = [template.format(n, n + 7, n + 20) for n in range(3, 8)]
    assert how(index(*made), template.format(50, 60, 70)) is None
    assert how(index(*made[:2]), template.format(50, 60, 70)) is Overlap.RENUMBERED
    assert how(index(*made), made[3].upper()) is Overlap.RECASED


def test_a_template_may_repeat_a_part_of_itself_and_fill_in_other_names() -> None:
    made = [
        "Tom has 61 apples, loses 40, gains 19. How many apples?",
        "Ana has 84 cards, loses 25, sells 22, gains 27. How many cards?",
        "Sam has 17 coins, gains 3, loses 2, loses 5, loses 7. How many coins?",
    ]
    held = index(*made)
    assert how(held, "Tom has 62 apples, loses 41, gains 18. How many apples?") is None
    assert how(held, "Tom has 61 apples, gains 40, loses 19. How many apples?") is None
    assert how(held, "Eva has 61 apples, loses 40, finds 19. How many apples?") is Overlap.REWORDED


def test_questions_of_one_form_are_no_template_where_they_have_no_numbers() -> None:
    held = index(*(f"What is the capital of {name}?" for name in ("France", "Spain", "Peru")))
    assert how(held, "What is the capital of Chile?") is None
    assert how(held, "Which city is the capital of Peru?") is Overlap.REWORDED


def test_a_templated_problem_is_found_inside_a_text_with_other_numbers() -> None:
    made = [f"Tom has {n} apples, loses {n - 1}. How many apples?" for n in range(20, 24)]
    held = index(*made)
    assert how(held, f"In 3 sentences: {made[1]} Then add 5.") is Overlap.CONTAINED
    assert how(held, "In 3 sentences: Tom has 30 apples, loses 9. How many apples?") is None


def test_the_rule_for_other_numbers_can_be_set_for_a_suite() -> None:
    other = TRAIN.replace("240", "250")
    template = "Nora puts {} pears into each of {} crates and sells {} crates at the market."
    made = [template.format(n, n + 7, n + 20) for n in range(3, 8)]
    held = HeldOutIndex(
        {"never": suite(TRAIN), "always": suite(*made)},
        {"never": Renumbered.NEVER, "always": Renumbered.ALWAYS},
    )
    assert how(held, other) is None
    assert how(held, template.format(50, 60, 70)) is Overlap.RENUMBERED


def test_instructions_that_all_items_share_make_no_template() -> None:
    asked = "Solve the problem step by step. Put the final answer into a box."
    others = [f"{asked} {word} is what?" for word in ("Rain", "Snow", "Hail", "Fog", "Dew")]
    held = index(f"{TRAIN} {asked}", *others)
    assert how(held, f"{TRAIN.replace('240', '250')} {asked}") is Overlap.RENUMBERED
    assert how(held, f"What does a kilo of figs cost? {asked}") is None


def test_suites_come_and_go_while_the_index_is_read() -> None:
    held = index(TRAIN)
    more = suite("How many legs do three spiders and two ants have together?")
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        while not stop.is_set():
            if held.is_held_out(TRAIN) != "suite":
                wrong.append("lost")

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        held.add_suite("more", more)
        assert held.is_held_out(more[0].prompt) == "more"
        held.remove_suite("more")
        assert held.is_held_out(more[0].prompt) is None
    stop.set()
    reader.join()
    assert not wrong
    held.remove_suite("more")


def test_a_very_long_text_is_looked_through_word_for_word() -> None:
    padding = "Nothing of interest is said here, page after page. " * 2000
    assert how(index(TRAIN), f"{padding}{TRAIN} {padding}") is Overlap.CONTAINED


@pytest.mark.parametrize("half", Half)
def test_planted_copies_are_found_and_clean_problems_pass(half: Half) -> None:
    labelled = make_set(half, seed=1)
    held = HeldOutIndex(labelled.suites)
    found: dict[Planted, list[bool]] = {label: [] for label in Planted}
    for case in labelled.planted:
        found[Planted(case.label)].append(held.match(case.text) is not None)
    for label, hits in found.items():
        assert sum(hits) >= 0.95 * len(hits), label
    clean = [case for case in labelled.clean if case.label is not Clean.TWIN]
    alarms = [case for case in clean if held.match(case.text) is not None]
    assert len(alarms) <= 0.01 * len(clean), alarms
