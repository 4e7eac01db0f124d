"""Records of common data sets: which field is what, and what is said of one that does not fit."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.cli.datasets import Plan, Preset, import_pair, import_problem, parse_map
from opsd.daemon.cli.jsonl import LineError
from opsd.v1.collection_pb2 import PairInput


def pair(record: Any, **plan: Any) -> PairInput:
    return import_pair(json.dumps(record).encode(), Plan(**plan)).pair


GSM8K = {
    "question": "Natalia sold 48 clips, then half as many. How many?",
    "answer": "She sold 48/2 = <<48/2=24>>24 clips.\nThat is 48+24 = <<48+24=72>>72.\n#### 1,072",
}
MATH = {
    "problem": "What is $1/2 + 1/2$?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "It is \\boxed{\\frac{2}{2}}.",
}


def test_gsm8k() -> None:
    for found in (pair(GSM8K), pair(GSM8K, preset=Preset.GSM8K)):
        assert found.prompt == GSM8K["question"]
        assert found.reference == "1072"
        assert found.solution == ("She sold 48/2 = 24 clips.\nThat is 48+24 = 72.\nAnswer: 1,072")
        assert found.verifier == "math"


def test_math() -> None:
    found = pair(MATH, preset=Preset.MATH, verifier="math")
    assert (found.reference, found.solution) == ("\\frac{2}{2}", MATH["solution"])
    assert found.stratum == "Level 1"
    assert pair(MATH).stratum == ""
    # MATH-500 names the answer too.
    assert pair(MATH | {"answer": "1"}).reference == "1"


def test_alpaca() -> None:
    record = {"instruction": "Add them.", "input": "2 and 3", "output": "Answer: 5"}
    for plan in ({}, {"preset": Preset.ALPACA}):
        found = pair(record, **plan)
        assert (found.prompt, found.reference) == ("Add them.\n\n2 and 3", "5")
    assert pair(record | {"input": ""}).prompt == "Add them."


@pytest.mark.parametrize(
    "record",
    [
        {
            "messages": [
                {"role": "user", "content": "2+3?"},
                {"role": "assistant", "content": "\\boxed{5}"},
            ]
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "2+3?"}]},
                {"role": "assistant", "content": "\\boxed{5}"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "2+3?"},
                {"from": "gpt", "value": "\\boxed{5}"},
            ]
        },
        {
            "prompt": [{"role": "user", "content": "2+3?"}],
            "completion": [{"content": "\\boxed{5}"}],
        },
        {"problem": "2+3?", "response": "\\boxed{5}"},
        {"question": "2+3?", "answer": "\\boxed{5}"},
        {"question": "2+3?", "completion": "\\boxed{5}", "answer": 5},
        {"query": "2+3?", "rationale": "\\boxed{5}", "final_answer": "5"},
    ],
)
def test_shapes_that_are_known(record: dict[str, Any]) -> None:
    found = pair(record)
    assert (found.prompt, found.solution, found.reference) == ("2+3?", "\\boxed{5}", "5")


def test_a_bare_answer_is_solution_and_reference() -> None:
    found = pair({"question": "2+3?", "answer": "5"})
    assert (found.solution, found.reference) == ("5", "5")
    assert pair({"question": "2+3?", "answer": 5}).reference == "5"


@pytest.mark.parametrize("answer", ["#### ", "####", "Answer:", "**Final answer:** "])
def test_a_mark_without_an_answer_is_no_bare_answer(answer: str) -> None:
    record = {"question": "2+3?", "answer": answer}
    with pytest.raises(LineError, match="marks no answer"):
        pair(record)
    assert import_problem(json.dumps(record).encode(), Plan()).problem.reference == ""


def test_fields_are_named_by_a_map() -> None:
    record = {"q": "2+3?", "meta": {"gold": 5}, "steps": "count", "kind": "sum"}
    fields = parse_map("prompt=q, solution=steps,reference=meta.gold,stratum=kind")
    found = pair(record, fields=fields)
    assert (found.prompt, found.solution, found.reference, found.stratum) == (
        "2+3?",
        "count",
        "5",
        "sum",
    )


@pytest.mark.parametrize("text", ["prompt", "prompt=", "promt=x"])
def test_a_map_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"prompt|promt"):
        parse_map(text)


@pytest.mark.parametrize(
    ("record", "plan", "message"),
    [
        ({"solution": "5"}, {}, "prompt: is missing; known names: prompt, problem"),
        ({"prompt": " ", "solution": "5"}, {}, "prompt: is empty"),
        ({"prompt": "2+3?"}, {}, "solution: is empty"),
        ({"prompt": "2+3?", "output": "five"}, {}, "reference: the solution marks no answer"),
        ({"question": "?", "answer": "it is long " * 9}, {}, "marks no answer"),
        ({"q": "?"}, {"fields": {"prompt": "p"}}, "prompt: the record has no 'p'"),
        ({"prompt": {"a": 1}, "solution": "5"}, {}, "prompt: must be a string"),
        ({"messages": [{"role": "user", "content": "?"}] * 3}, {}, "one question and one reply"),
        ({"messages": "hi"}, {}, "must be a list of turns"),
        ({"messages": [7]}, {}, "turn 1 is no object"),
        ({"prompt": "\ud800", "answer": "5"}, {}, "half a surrogate pair"),
        ({"prompt": "?", "answer": "5", "status": "quarantined"}, {}, "release it there"),
    ],
)
def test_what_does_not_fit_is_named(record: Any, plan: Any, message: str) -> None:
    with pytest.raises(LineError) as caught:
        pair(record, **plan)
    assert message in str(caught.value)


def test_an_exported_pair_stays_what_it_was() -> None:
    record = {
        "id": str(uuid.uuid4()),
        "prompt": "2+3?",
        "solution": "<<2+3=5>>\n#### 5",  # not GSM8K's: its reference stands beside it
        "verifier": "numeric",
        "reference": "5",
        "source": "s",
        "stratum": "easy",
        "origin": "self_play",
        "status": "verified",
    }
    request = import_pair(json.dumps(record).encode(), Plan(source="other"))
    given = {name: record[name] for name in PairInput.DESCRIPTOR.fields_by_name}
    assert request.pair == PairInput(**given)
    assert request.origin == "self_play", "what the model made must not pass for imported"


def test_ids_follow_from_content() -> None:
    assert pair(GSM8K).id == pair(GSM8K | {"id": "train-17", "split": "train"}).id
    assert pair(GSM8K).id != pair(GSM8K, verifier="numeric").id
    import_origin = import_pair(json.dumps(GSM8K).encode(), Plan()).origin
    assert import_origin == "imported"
    assert import_pair(json.dumps(GSM8K | {"origin": "web"}).encode(), Plan()).origin == "imported"


def test_problems() -> None:
    def problem(record: Any, **plan: Any) -> Any:
        return import_problem(json.dumps(record).encode(), Plan(**plan)).problem

    assert problem(GSM8K).reference == "1072"
    assert problem(GSM8K, without_reference=True).reference == ""
    assert problem({"prompt": "2+3?"}).reference == ""
    assert problem({"prompt": "2+3?", "output": "five"}).reference == ""
    assert problem({"prompt": "2+3?", "priority": 7}).priority == 7
    with pytest.raises(LineError, match="priority"):
        problem({"prompt": "2+3?", "priority": "high"})


@given(
    st.dictionaries(
        st.sampled_from(["prompt", "question", "answer", "messages", "output", "id", "origin"]),
        st.recursive(
            st.none() | st.text() | st.integers() | st.floats(allow_nan=False),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "text"]), inner, max_size=3)
            ),
            max_leaves=6,
        ),
    )
)
def test_any_record_is_a_pair_or_a_named_fault(record: dict[str, Any]) -> None:
    raw = json.dumps(record).encode()
    with suppress(LineError):
        assert import_pair(raw, Plan()).pair.reference.strip()
    with suppress(LineError):
        assert import_problem(raw, Plan()).problem.prompt.strip()
