"""The canonical form of what a gate is decided from."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import GateInputs, decode, encode
from opsd.daemon.gate.rules import BehaviourRules, GateRules
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured

answers = st.builds(
    AnswerRecord,
    solved=st.sampled_from([True, False, None]),
    tokens=st.integers(0, 2000),
    truncated=st.booleans(),
    words=st.integers(0, 2000),
    markers=st.integers(0, 30),
    repetition=st.floats(0, 1),
    formatted=st.booleans(),
    refusal=st.booleans(),
    entropy=st.none() | st.floats(0, 10),
    kl_to_base=st.none() | st.floats(0, 10),
)
items = st.builds(
    lambda name, a, b, c, d, stratum: ItemMeasured(
        name,
        {Arm.BASE: (a,), Arm.INCUMBENT: (b,), Arm.CANDIDATE: (c,)},
        stratum,
        with_reference={Arm.CANDIDATE: d},
    ),
    st.text(max_size=5),
    *[answers] * 4,
    st.sampled_from(["", "easy", "hard"]),
)
suites = st.builds(
    SuiteMeasured,
    name=st.just("s"),
    version=st.just("1"),
    sha256=st.just("0" * 64),
    role=st.sampled_from(SuiteRole),
    margin=st.floats(0, 0.5),
    items=st.lists(items, max_size=6).map(tuple),
    stratum_margin=st.floats(0, 0.5),
    sealed=st.booleans(),
    num_uses=st.integers(0, 30),
)


@given(st.lists(suites, max_size=3))
def test_inputs_come_back_and_decide_the_same(given_suites: list[SuiteMeasured]) -> None:
    rules = GateRules(behaviour=replace(BehaviourRules(), literacy_required=True))
    inputs = GateInputs("run", "opsd-1", "base", rules, tuple(given_suites), 1.5, 2.25)
    data = encode(inputs)
    again = decode(data)
    assert again == inputs
    assert encode(again) == data
    assert decide(again) == decide(inputs)


def test_the_order_in_which_arms_were_measured_does_not_show() -> None:
    one = AnswerRecord(True, 1)
    first = ItemMeasured("i", {Arm.INCUMBENT: (one,), Arm.CANDIDATE: (one,)})
    second = ItemMeasured("i", {Arm.CANDIDATE: (one,), Arm.INCUMBENT: (one,)})

    def of(item: ItemMeasured) -> bytes:
        suite = SuiteMeasured("s", "1", "0" * 64, SuiteRole.TARGET, 0.0, (item,))
        return encode(GateInputs("run", "a", "b", GateRules(), (suite,), 0.0, 0.0))

    assert of(first) == of(second)


@pytest.mark.parametrize("data", [b"{}", b"[]", b'{"format": 99}', b"null", b"\xff"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"no gate inputs|format 99|decode|utf-8"):
        decode(data)


def test_an_unknown_rule_is_refused() -> None:
    body = json.loads(encode(GateInputs("run", "a", "b", GateRules(), (), 0.0, 0.0)))
    body["rules"]["behaviour"]["tone"] = 0.5
    with pytest.raises(ValueError, match="no gate inputs"):
        decode(json.dumps(body).encode())
