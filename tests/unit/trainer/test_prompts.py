"""Prompts of both roles, exactly as the chat template makes them."""

from pathlib import Path
from typing import Any

import pytest

from opsd.trainer.contexts import Material, fill
from opsd.trainer.curriculum import Curriculum
from opsd.trainer.data import Pair
from opsd.trainer.draws import Draws
from opsd.trainer.errors import PromptError
from opsd.trainer.prompts import PromptMaker
from opsd.v1 import training_pb2


@pytest.fixture(scope="module")
def tokenizer(micro_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(micro_model)


def run_spec(**changes: Any) -> training_pb2.RunSpec:
    fields = {"student_template": "{problem}", "teacher_template": "{problem} | {solution}"}
    return training_pb2.RunSpec(
        prompt=training_pb2.PromptSpec(**(fields | changes)),
        objective=training_pb2.ObjectiveSpec(method=training_pb2.METHOD_OPSD),
    )


def draws_of(pairs: list[Pair], maker: PromptMaker) -> Draws:
    curriculum = Curriculum(training_pb2.CurriculumSpec(), pairs, 0)
    return Draws(pairs, 0, curriculum, lambda pair: maker.student_ids(pair) is not None)


def test_braces_in_the_texts_stay_as_they_are() -> None:
    values = {"problem": "{solution} {0} {{x}}", "solution": "{problem}"}
    text = fill("{problem} {other} {solution}!", values)
    assert text == "{solution} {0} {{x}} {other} {problem}!"


def test_each_role_reads_its_own_prompt(tokenizer: Any) -> None:
    maker = PromptMaker(tokenizer, run_spec(system="Be brief.", teacher_thinking=True), 200)
    pair = Pair("1", "2+2", "4")
    start = "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n"
    assert tokenizer.decode(maker.student_ids(pair)) == (
        start + "2+2<|im_end|><|im_start|>assistant\n<nothink>"
    )
    assert tokenizer.decode(maker.teacher_ids(pair)) == (
        start + "2+2 | 4<|im_end|><|im_start|>assistant\n"
    )


SECTIONS = {
    "teacher_template": "{problem}\n{context}\nGo.",
    "solution_section": "S: {solution}",
    "answer_section": "A: {answer}",
    "own_trace_section": "T: {own_trace}",
    "feedback_section": "F: {feedback}",
}
PAIR = Pair("1", "2+2 {feedback}", "four", reference="4")


def told(tokenizer: Any, kinds: list[str], material: Material, **changes: Any) -> str | None:
    """The teacher's message."""
    contexts = [training_pb2.Context.Value(f"CONTEXT_{kind}") for kind in kinds]
    maker = PromptMaker(tokenizer, run_spec(**SECTIONS, contexts=contexts, **changes), 300)
    ids = maker.teacher_ids(PAIR, material)
    if ids is None:
        return None
    text: str = tokenizer.decode(ids)
    return text.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0]


def test_contexts_are_told_in_their_order_and_alone_or_together(tokenizer: Any) -> None:
    nothing, both = Material(), Material("9-5=4", "3 is wrong")
    head, tail = "2+2 {feedback}\n", "\nGo."
    assert told(tokenizer, [], nothing) == head + "S: four" + tail
    assert told(tokenizer, ["ANSWER"], nothing) == head + "A: 4" + tail
    assert told(tokenizer, ["SOLUTION", "ANSWER"], nothing) == head + "S: four\nA: 4" + tail
    assert told(tokenizer, ["FEEDBACK", "OWN_TRACE"], both) == (
        head + "F: 3 is wrong\nT: 9-5=4" + tail
    )
    assert told(tokenizer, ["OWN_TRACE", "FEEDBACK"], Material(feedback="no")) == (
        head + "F: no" + tail
    )


def test_a_teacher_with_nothing_to_read_has_no_prompt(tokenizer: Any) -> None:
    assert told(tokenizer, ["OWN_TRACE", "FEEDBACK"], Material()) is None


def test_a_control_tells_another_problems_solution(tokenizer: Any) -> None:
    maker = PromptMaker(tokenizer, run_spec(**SECTIONS), 300)
    ids = maker.teacher_ids(PAIR, source=Pair("2", "5+5", "ten"))
    assert "2+2 {feedback}\nS: ten" in tokenizer.decode(ids)


def test_a_prompt_of_exactly_the_limit_fits_and_one_token_more_does_not(tokenizer: Any) -> None:
    pair = Pair("1", "2+2", "4")
    maker = PromptMaker(tokenizer, run_spec(), 200)
    student, teacher = maker.student_ids(pair), maker.teacher_ids(pair)
    assert student is not None
    assert teacher is not None
    for ids, method in ((student, "student_ids"), (teacher, "teacher_ids")):
        fits = getattr(PromptMaker(tokenizer, run_spec(), len(ids)), method)
        assert fits(pair) == ids
        assert getattr(PromptMaker(tokenizer, run_spec(), len(ids) - 1), method)(pair) is None
    short = PromptMaker(tokenizer, run_spec(), len(student) - 1)
    short.student_ids(pair)
    short.student_ids(pair)
    assert short.num_skipped == 1


def test_draws_pass_over_what_does_not_fit_and_remember_their_place(tokenizer: Any) -> None:
    pairs = [Pair(str(n), str(n) + "9" * (90 if n % 2 else 3), "1") for n in range(6)]
    maker = PromptMaker(tokenizer, run_spec(), 80)
    whole = draws_of(pairs, maker)
    ids = [pair.id for pair in whole.take(2) + whole.take(7)]
    assert set(ids) == {"0", "2", "4"}
    first = draws_of(pairs, maker)
    begun = [pair.id for pair in first.take(2)]
    second = draws_of(pairs, maker)
    second.seek(first.position)
    assert begun + [pair.id for pair in second.take(7)] == ids


def test_what_no_prompt_can_be_made_with_is_said(tokenizer: Any) -> None:
    with pytest.raises(PromptError, match="leave no room"):
        PromptMaker(tokenizer, run_spec(), 0)
    maker = PromptMaker(tokenizer, run_spec(), 5)
    with pytest.raises(PromptError, match="all 1 problems are too long"):
        draws_of([Pair("1", "2+2", "4")], maker).take(1)


def test_a_missing_or_broken_chat_template_is_said(micro_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(micro_model)
    tokenizer.chat_template = "{{ raise_exception('only for users') }}"
    with pytest.raises(PromptError, match="only for users"):
        PromptMaker(tokenizer, run_spec(), 99).student_ids(Pair("1", "2+2", "4"))
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="no chat template"):
        PromptMaker(tokenizer, run_spec(), 99)
