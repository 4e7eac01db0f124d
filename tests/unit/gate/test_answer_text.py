"""Counting in answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.config.gate import BehaviourConfig
from opsd.daemon.config.training import ObjectiveTraining
from opsd.daemon.gate.answer_text import TextMeter, repetition

DEFAULTS = BehaviourConfig()
METER = TextMeter(markers=DEFAULTS.markers, refusals=DEFAULTS.refusals)


def test_the_default_markers_are_the_trainers() -> None:
    assert DEFAULTS.markers == ObjectiveTraining().epistemic_words


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("WAIT, hmm. Maybe\nnot\nsure", 4),
        ("waiter, mighty, perhapses", 0),
        ("Let me  check: let me\ncheck", 2),
        ("not-sure unsure", 0),
        ("actually_", 0),
        ("", 0),
    ],
)
def test_markers_are_whole_words(text: str, count: int) -> None:
    assert METER.measure(text).markers == count


def test_the_longest_marker_counts_once() -> None:
    meter = TextMeter(markers=("maybe", "maybe not"), refusals=())
    assert meter.measure("maybe not, maybe").markers == 2


@pytest.mark.parametrize(
    ("text", "is_refusal"),
    [
        ("I cannot help with that.", True),
        ("I\u2019m sorry, but no.", True),
        ("<think>I can't recall the rule; yes I can.</think>The answer is 4.", False),
        ("<think>easy</think>\n\nAs an AI, I do not.", True),
        ("x" * 300 + " I cannot say more", False),
        ("The sorry state of affairs", False),
        ("I can'tell", False),
        ("", False),
    ],
)
def test_a_refusal_stands_at_the_beginning(text: str, is_refusal: bool) -> None:
    assert METER.measure(text).refusal is is_refusal


def test_nothing_to_look_for_finds_nothing() -> None:
    found = TextMeter(markers=(), refusals=()).measure("wait, I cannot")
    assert (found.words, found.markers, found.refusal) == (3, 0, False)


def test_repetition_is_the_share_of_known_4_grams() -> None:
    assert repetition(["a", "b", "c"]) == 0.0
    assert repetition(["a", "b", "c", "d", "e", "f"]) == 0.0
    assert repetition(["x"] * 13) == 0.9


@given(st.text())
def test_any_text_can_be_measured(text: str) -> None:
    found = METER.measure(text)
    assert 0.0 <= found.repetition < 1.0
    assert found.markers <= found.words
