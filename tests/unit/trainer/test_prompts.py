"""Prompts of both roles, exactly as the chat template makes them."""

from pathlib import Path
from typing import Any

import pytest

from opsd.trainer.data import Pair
from opsd.trainer.errors import PromptError
from opsd.trainer.prompts import Draws, PromptMaker, fill
from opsd.v1 import training_pb2


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(micro_model)


def prompt_spec(**changes: Any) -> training_pb2.PromptSpec:
    fields = {"student_template": "{problem}", "teacher_template": "{problem} | {solution}"}
    return training_pb2.PromptSpec(**(fields | changes))


def test_braces_in_the_texts_stay_as_they_are() -> None:
    text = fill(
        "{problem} {other} {solution}!", problem="{solution} {0} {{x}}", solution="{problem}"
    )
    assert text == "{solution} {0} {{x}} {other} {problem}!"


def test_each_role_reads_its_own_prompt(tokenizer: Any) -> None:
    maker = PromptMaker(tokenizer, prompt_spec(system="Be brief.", teacher_thinking=True), 200)
    prompts = maker.make(Pair("1", "2+2", "4"))
    assert prompts is not None
    start = "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n"
    assert tokenizer.decode(prompts.student_ids) == (
        start + "2+2<|im_end|><|im_start|>assistant\n<nothink>"
    )
    assert tokenizer.decode(prompts.teacher_ids) == (
        start + "2+2 | 4<|im_end|><|im_start|>assistant\n"
    )


def test_a_prompt_of_exactly_the_limit_fits_and_one_token_more_does_not(tokenizer: Any) -> None:
    pair = Pair("1", "2+2", "4")
    longest = max(
        len(ids)
        for prompts in [PromptMaker(tokenizer, prompt_spec(), 200).make(pair)]
        if prompts is not None
        for ids in (prompts.student_ids, prompts.teacher_ids)
    )
    assert PromptMaker(tokenizer, prompt_spec(), longest).make(pair) is not None
    maker = PromptMaker(tokenizer, prompt_spec(), longest - 1)
    assert maker.make(pair) is None
    assert maker.make(pair) is None
    assert maker.num_skipped == 1


def test_draws_pass_over_what_does_not_fit_and_remember_their_place(tokenizer: Any) -> None:
    pairs = [Pair(str(n), "9" * (90 if n % 2 else 3), "1") for n in range(6)]
    whole = Draws(pairs, 0, PromptMaker(tokenizer, prompt_spec(), 80))
    ids = [prompts.pair_id for prompts in whole.take(2) + whole.take(7)]
    assert set(ids) == {"0", "2", "4"}
    first = Draws(pairs, 0, PromptMaker(tokenizer, prompt_spec(), 80))
    begun = [prompts.pair_id for prompts in first.take(2)]
    second = Draws(pairs, 0, PromptMaker(tokenizer, prompt_spec(), 80))
    second.seek(first.position)
    assert begun + [prompts.pair_id for prompts in second.take(7)] == ids


def test_what_no_prompt_can_be_made_with_is_said(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="no room"):
        PromptMaker(tokenizer, prompt_spec(), 0)
    draws = Draws([Pair("1", "2+2", "4")], 0, PromptMaker(tokenizer, prompt_spec(), 5))
    with pytest.raises(PromptError, match="all 1 problems are too long"):
        draws.take(1)


def test_a_missing_or_broken_chat_template_is_said(micro_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    tokenizer.chat_template = "{{ raise_exception('only for users') }}"
    with pytest.raises(PromptError, match="only for users"):
        PromptMaker(tokenizer, prompt_spec(), 99).make(Pair("1", "2+2", "4"))
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        PromptMaker(tokenizer, prompt_spec(), 99)
