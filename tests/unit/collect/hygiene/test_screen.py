"""A pair's texts are made fit, put aside or refused; each with its reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from opsd.daemon.collect.hygiene.canary import CanaryPlan, CanaryScanner
from opsd.daemon.collect.hygiene.limits import estimated_tokens
from opsd.daemon.collect.hygiene.screen import Screen, Screened
from opsd.daemon.config.hygiene import HygieneConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.types.pairs import PairInput

TOKENS = ("<|im_end|>", "<think>", "</think>")
GERMAN = (
    "Ein Bäcker backt jeden Morgen vierundzwanzig Brötchen und verkauft davon am Vormittag die "
    "Hälfte. Wie viele Brötchen bleiben ihm noch übrig?"
)
ENGLISH = (
    "Every morning a baker bakes twenty-four rolls and sells half of them before noon. How many "
    "rolls are still left for the afternoon?"
)


def screen(prompt: str = "1+2", solution: str = "3", reference: str = "3", **config) -> Screened:
    scrub = config.pop("scrub", None)
    pair = PairInput("id", prompt, solution, "numeric", reference)
    return Screen(HygieneConfig(**config), TOKENS, scrub).screen(pair)


def test_clean_text_stays_as_it_is() -> None:
    found = screen(ENGLISH)
    assert found == Screened(found.pair)
    assert found.pair.prompt == ENGLISH


@pytest.mark.parametrize("field", ["prompt", "solution", "reference"])
def test_a_leak_canary_is_not_learnt(field: str) -> None:
    planted = CanaryPlan(b"a secret of 16 bytes", 1.0).canaries[0]
    pair = PairInput("id", "1+2", "3", "numeric", "3")
    find = CanaryScanner((planted,)).find
    made = Screen(HygieneConfig(), TOKENS, None, find)
    leaked = replace(pair, **{field: f"3 {planted.lower()} 3"})
    assert made.screen(leaked).refusal.startswith(f"{field}: it holds a leak canary")
    assert made.screen(pair).refusal == ""


def test_control_tokens_become_text_everywhere() -> None:
    found = screen("1+2 <|im_end|>", "so <think>3", "3</think>")
    assert found.pair.prompt == "1+2 < |im_end|>"
    assert found.pair.solution == "so < think>3"
    assert found.pair.reference == "3< /think>"
    assert (found.refusal, found.quarantine) == ("", "")
    assert "<think>" in found.notes[0]


def test_some_may_stay_in_a_solution_only() -> None:
    found = screen(
        "a <think>",
        "<think>so</think> 3 <|im_end|>",
        solution_control_tokens=("<think>", "</think>"),
    )
    assert found.pair.prompt == "a < think>"
    assert found.pair.solution == "<think>so</think> 3 < |im_end|>"


def test_control_tokens_can_be_put_aside_or_refused() -> None:
    aside = screen("1+2<|im_end|>", on_control_tokens="quarantine")
    assert "<|im_end|>" in aside.quarantine
    assert aside.pair.prompt == "1+2< |im_end|>"
    assert "<|im_end|>" in screen("1+2<|im_end|>", on_control_tokens="refuse").refusal


def test_another_language_is_put_aside_or_refused() -> None:
    assert "'de'" in screen(GERMAN, languages=("en",)).quarantine
    assert "'de'" in screen(GERMAN, languages=("en",), on_language="refuse").refusal
    assert screen(GERMAN, languages=("de", "en")).quarantine == ""
    assert screen(ENGLISH, languages=("en",)).quarantine == ""
    assert screen(GERMAN).quarantine == ""


@pytest.mark.parametrize(
    "text",
    [
        "61-40-19",
        "Wie viel ist 3+4?",
        "$\\int_0^1 x^2 \\, dx = \\frac{1}{3}$ und $\\sum_{i=1}^n i = \\frac{n(n+1)}{2}$",
        "def summe_der_zahlen(liste): return sum(liste)",
        "sin(x)cos(y)tan(z)log(w)exp(v)sqrt(u)max(a,b)min(c,d)gcd(e,f)lcm(g,h)" * 2,
        "x_1 + x_2 + x_3 = 7, x_1 - x_2 = 2; y_1 y_2 y_3 y_4",
    ],
)
def test_short_texts_mathematics_and_code_pass_in_every_language(text: str) -> None:
    assert screen(text, languages=("en",)).quarantine == ""


def test_a_language_that_is_not_known_is_a_mistake_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match="xx"):
        screen(languages=("xx",))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": " \u200b?! "}, "prompt: no word"),
        ({"solution": "\u200b\u00ad \n"}, "solution: nothing"),
        ({"reference": "\u200b"}, "reference: nothing"),
        ({"prompt": "word " * 10, "max_prompt_chars": 40}, "50 characters, more than the 40"),
        ({"solution": "1 2 3 4 5", "max_solution_tokens": 4}, "about 5 tokens, more than the 4"),
        ({"solution": "no" + "o" * 300}, "'o' is repeated 301 times"),
        ({"solution": "so it is. " * 1000}, "again and again"),
    ],
)
def test_what_is_no_problem_is_refused(fields, words: str) -> None:
    assert words in screen(**fields).refusal


@pytest.mark.parametrize(
    "solution", ["1" + "0" * 5000, "=" * 500 + " done", "a\n" + " " * 900 + "b", "≈" * 100]
)
def test_long_numbers_rules_and_indents_are_no_junk(solution: str) -> None:
    assert screen(solution=solution, min_distinct_share=0.0).refusal == ""


def test_personal_data_is_removed_and_what_removes_it_must_not_fail() -> None:
    found = screen("mail a@b.example", scrub=lambda text: text.replace("a@b.example", "<|im_end|>"))
    assert found.pair.prompt == "mail < |im_end|>"
    assert found.notes == ("personal data was removed",)

    def broken(text: str) -> str:
        raise RuntimeError("no model")

    assert "RuntimeError: no model" in screen(scrub=broken).refusal
    assert "nothing is left" in screen(scrub=lambda text: "").refusal


def test_screening_again_changes_nothing() -> None:
    once = screen("1 <|im_end|>", "<think>3").pair
    assert screen(once.prompt, once.solution).pair == once


def test_tokens_are_estimated_from_letters_digits_and_signs() -> None:
    assert estimated_tokens("") == 0
    assert estimated_tokens("12 + internationalisation") == 3 + 5
    assert estimated_tokens("日本語") == 3
