"""What is judged of answers beside their correctness."""

from dataclasses import replace

import numpy as np
import pytest

from opsd.daemon.gate.decision import decide
from opsd.daemon.gate.inputs import GateInputs
from opsd.daemon.gate.rules import BehaviourRules, GateRules
from opsd.daemon.types.gate import CheckReport, GateReport, GateVerdict, SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
GOOD = AnswerRecord(True, 100, words=80, markers=1, entropy=0.4, kl_to_base=0.01)
N = 400


def items(
    candidate: AnswerRecord | list[AnswerRecord],
    *,
    n: int = N,
    incumbent: AnswerRecord = GOOD,
    base: AnswerRecord | None = None,
) -> tuple[ItemMeasured, ...]:
    """The candidate solves what the incumbent does, and every fifth besides."""
    given = candidate if isinstance(candidate, list) else [candidate] * n
    made = []
    for number, answer in enumerate(given):
        before = replace(incumbent, solved=bool(incumbent.solved) and number % 5 != 0)
        answers = {Arm.INCUMBENT: (before,), Arm.CANDIDATE: (answer,)}
        if base is not None:
            answers[Arm.BASE] = (base,)
        made.append(ItemMeasured(str(number), answers))
    return tuple(made)


def gate(
    measured: tuple[ItemMeasured, ...],
    *,
    incumbent: str = "opsd-1",
    sealed: bool = False,
    **limits: float | bool,
) -> GateReport:
    suite = SuiteMeasured("t", "1", "0" * 64, SuiteRole.TARGET, 0.0, measured, sealed=sealed)
    rules = GateRules(behaviour=replace(BehaviourRules(), **limits))  # type: ignore[arg-type]
    return decide(GateInputs("run", "opsd-2", incumbent, rules, (suite,), 0.0, 1.0))


def check(report: GateReport, name: str) -> CheckReport:
    return next(found for found in report.checks if found.name == name)


def test_an_unchanged_manner_passes() -> None:
    report = gate(items(GOOD, base=GOOD))
    assert report.verdict is PASS, report.explanation
    judged = {found.name: found.verdict for found in report.checks if found.verdict is not None}
    assert set(judged.values()) == {PASS}
    assert {"markers", "length", "truncated", "refusal", "entropy", "drift_kl"} <= set(judged)
    assert "checks of the answers held" in report.explanation


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("markers", {"markers": 0}),
        ("length", {"tokens": 40}),
        ("length", {"tokens": 250}),
        ("truncated", {"truncated": True}),
        ("repetition", {"repetition": 0.3}),
        ("unformatted", {"formatted": False}),
        ("refusal", {"refusal": True}),
        ("entropy", {"entropy": 0.1}),
        ("drift_kl", {"kl_to_base": 2.0}),
    ],
)
def test_each_manner_of_harm_is_stopped(name: str, changed: dict[str, float]) -> None:
    report = gate(items(replace(GOOD, **changed), base=GOOD))  # type: ignore[arg-type]
    assert report.verdict is FAIL
    found = check(report, name)
    assert found.verdict is FAIL
    assert "beyond the limit" in found.explanation
    assert found.explanation in report.explanation


def test_halved_markers_are_stopped_and_a_tenth_less_is_not() -> None:
    generator = np.random.default_rng(5)

    def hesitant(share: float) -> list[AnswerRecord]:
        return [replace(GOOD, markers=int(k)) for k in generator.poisson(share, size=N)]

    assert check(gate(items(hesitant(0.5))), "markers").verdict is FAIL
    assert check(gate(items(hesitant(0.97))), "markers").verdict is PASS


def test_markers_lost_only_where_both_are_wrong_are_found() -> None:
    """A loss in one half is diluted in the whole."""
    right, wrong = GOOD, replace(GOOD, solved=False)
    made = [
        ItemMeasured(str(n), {Arm.INCUMBENT: (right,), Arm.CANDIDATE: (right,)}) for n in range(360)
    ] + [
        ItemMeasured(
            f"w{n}", {Arm.INCUMBENT: (wrong,), Arm.CANDIDATE: (replace(wrong, markers=0),)}
        )
        for n in range(40)
    ]
    report = gate(tuple(made))
    assert check(report, "markers").verdict is PASS
    assert check(report, "markers_correct").verdict is PASS
    assert check(report, "markers_incorrect").verdict is FAIL
    assert report.verdict is FAIL


def test_few_markers_are_inconclusive_and_none_is_nothing_to_lose() -> None:
    few = [replace(GOOD, markers=0)] * N
    rare = items(few, incumbent=replace(GOOD, markers=0))
    assert check(gate(rare), "markers").verdict is None
    short = replace(GOOD, words=1, markers=0)
    once = [
        ItemMeasured(
            str(n),
            {
                Arm.INCUMBENT: (replace(short, markers=int(n < 5)),),
                Arm.CANDIDATE: (short,),
            },
        )
        for n in range(N)
    ]
    found = check(gate(tuple(once)), "markers")
    assert found.verdict is INCONCLUSIVE
    assert "has only 5, fewer than the 20" in found.explanation


def test_small_steps_add_up_since_base() -> None:
    """Against the incumbent nothing is lost; against base nearly everything is."""
    now = replace(GOOD, markers=1, tokens=100)
    then = replace(GOOD, markers=6, tokens=600, entropy=2.5)
    report = gate(items(now, base=then))
    assert check(report, "markers").verdict is PASS
    for name in ("drift_markers", "drift_length", "drift_entropy"):
        assert check(report, name).verdict is FAIL
        assert check(report, name).against == "base"
    assert report.verdict is FAIL
    # Where base is the incumbent there is nothing between the two.
    names = {found.name for found in gate(items(now), incumbent="base").checks}
    assert not names & {"drift_markers", "drift_length", "drift_entropy"}


def test_what_was_not_measured_is_said_and_not_judged() -> None:
    unscored = replace(GOOD, entropy=None, kl_to_base=None)
    report = gate(items(unscored, incumbent=unscored))
    for name in ("entropy", "drift_kl", "drift_markers"):
        assert check(report, name).verdict is None
        assert "not measured" in check(report, name).explanation


def test_few_items_are_inconclusive() -> None:
    report = gate(items(GOOD, n=8))
    assert check(report, "length").verdict is INCONCLUSIVE
    assert "too few" in check(report, "length").explanation
    assert report.verdict is INCONCLUSIVE


def literate(solved: bool) -> tuple[ItemMeasured, ...]:
    made = items(GOOD)
    return tuple(
        replace(
            item,
            with_reference={Arm.INCUMBENT: GOOD, Arm.CANDIDATE: replace(GOOD, solved=solved)},
        )
        for item in made
    )


def test_reading_a_key_is_judged_where_the_adapter_will_teach() -> None:
    lost = gate(literate(False), literacy_required=True)
    assert check(lost, "literacy").verdict is FAIL
    assert lost.verdict is FAIL
    assert gate(literate(True), literacy_required=True).verdict is PASS
    told = check(gate(literate(False)), "literacy")
    assert told.verdict is None
    assert "told only" in told.explanation
    assert told.candidate == 0.0


def test_sealed_suites_give_no_numbers() -> None:
    report = gate(items(replace(GOOD, markers=0)), sealed=True)
    assert all(found.n == 0 for found in report.checks)
    (suite,) = report.suites
    assert suite.verdict is PASS
    assert suite.explanation == "t (sealed): improved"
    assert (suite.n, suite.candidate_accuracy, suite.ci_high, suite.p_value) == (0, 0.0, 0.0, 0.0)
