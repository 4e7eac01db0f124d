"""The teacher's message for an item."""

from typing import Any

from opsd.daemon.config.training import PromptTraining
from opsd.daemon.gate.literacy import KeyPrompt
from opsd.daemon.types.engine import ChatMessage
from opsd.daemon.types.pairs import SuiteItem
from opsd.trainer.contexts import NO_MATERIAL, Contexts
from opsd.trainer.data import Pair
from opsd.v1 import training_pb2

ITEM = SuiteItem("a", "1+{solution}?", "numeric", "3", solution="1, {problem} then 3")


def told(item: SuiteItem = ITEM, **prompt: Any) -> str:
    (message,) = KeyPrompt(PromptTraining.model_validate(prompt)).messages(item)
    return message.content


def test_it_is_what_the_trainer_writes() -> None:
    default = PromptTraining()
    spec = training_pb2.PromptSpec(
        teacher_template=default.teacher_template,
        solution_section=default.solution_section,
        answer_section=default.answer_section,
    )
    pair = Pair(id="a", prompt=ITEM.prompt, solution=ITEM.solution, verifier="", reference="3")
    for kinds in (["solution"], ["answer"], ["solution", "answer"], ["answer", "solution"]):
        numbers = [training_pb2.Context.Value(f"CONTEXT_{kind.upper()}") for kind in kinds]
        contexts = Contexts(spec, numbers)
        assert told(contexts=kinds) == contexts.message(pair, pair, NO_MATERIAL)


def test_an_item_without_a_solution_tells_its_reference() -> None:
    assert "Reference solution: 3" in told(SuiteItem("a", "1+2?", "numeric", "3"))


def test_what_only_an_attempt_can_fill_is_left_out() -> None:
    assert told(contexts=["own_trace", "feedback"]) == told()
    assert told(contexts=["feedback", "answer"]) == told(contexts=["answer"])


def test_a_system_message_comes_first() -> None:
    prompt = KeyPrompt(PromptTraining(system="Be brief.", teacher_thinking=True))
    assert prompt.messages(ITEM)[0] == ChatMessage("system", "Be brief.")
    assert prompt.enable_thinking
    assert prompt.conditions() != KeyPrompt(PromptTraining()).conditions()
