"""The gate's rules, one suite at a time and all together."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd.daemon.gate import decision
from opsd.daemon.gate.decision import combine, decide
from opsd.daemon.gate.inputs import GateInputs
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.types.gate import GateReport, GateVerdict, SuiteReport, SuiteRole
from opsd.daemon.types.measured import AnswerRecord as Answer
from opsd.daemon.types.measured import Arm, ItemMeasured, SuiteMeasured

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
TARGET = SuiteMeasured("medium", "1", "a" * 64, SuiteRole.TARGET, 0.02, ())
GUARD = SuiteMeasured("easy", "1", "b" * 64, SuiteRole.GUARD, 0.05, ())
RULE = GateRules(confidence=0.95, max_error_fraction=0.02, max_tokens=64)


def item(incumbent: Answer, candidate: Answer, stratum: str = "") -> ItemMeasured:
    return ItemMeasured("", {Arm.INCUMBENT: (incumbent,), Arm.CANDIDATE: (candidate,)}, stratum)


def pair(
    incumbent: bool | None, candidate: bool | None, stratum: str = "", tokens: int = 20
) -> ItemMeasured:
    return item(Answer(incumbent, tokens), Answer(candidate, tokens), stratum)


def numbered(items: Sequence[ItemMeasured]) -> tuple[ItemMeasured, ...]:
    return tuple(replace(item, id=f"i{number}") for number, item in enumerate(items))


def judge_suite(
    suite: SuiteMeasured, items: Sequence[ItemMeasured], rules: GateRules
) -> SuiteReport:
    return decision.judge_suite(replace(suite, items=numbered(items)), rules)


def table(both: int, wins: int, losses: int, neither: int) -> list[ItemMeasured]:
    return (
        [pair(True, True)] * both
        + [pair(False, True)] * wins
        + [pair(True, False)] * losses
        + [pair(False, False)] * neither
    )


@pytest.mark.parametrize(
    ("items", "verdict", "said"),
    [
        (table(50, 40, 5, 105), PASS, "a gain of more than 2 points is shown"),
        (table(50, 5, 40, 105), FAIL, "it became worse"),
        (table(190, 0, 0, 400), FAIL, "a gain of more than 2 points is ruled out"),
        (table(50, 12, 8, 130), INCONCLUSIVE, "neither shown nor ruled out"),
        # Significantly better, but not by the gain that was asked for.
        (table(1000, 25, 6, 0), INCONCLUSIVE, "neither shown nor ruled out"),
        (table(2000, 25, 6, 2000), FAIL, "a gain of more than 2 points is ruled out"),
    ],
)
def test_target(items: list[ItemMeasured], verdict: GateVerdict, said: str) -> None:
    report = judge_suite(TARGET, items, RULE)
    assert report.verdict is verdict, report.explanation
    assert said in report.explanation


@pytest.mark.parametrize(
    ("items", "verdict", "said"),
    [
        (table(291, 0, 4, 5), PASS, "a loss of more than 5 points is ruled out: non-inferior"),
        (table(200, 0, 60, 40), FAIL, "a loss of more than 5 points is proven: worse"),
        (table(180, 8, 16, 96), INCONCLUSIVE, "neither ruled out nor proven"),
        # Significantly worse, yet within the tolerated margin: that is what a margin is.
        (table(1960, 0, 20, 20), PASS, "non-inferior"),
        (table(10, 0, 0, 0), INCONCLUSIVE, "neither ruled out nor proven"),
    ],
)
def test_guard(items: list[ItemMeasured], verdict: GateVerdict, said: str) -> None:
    report = judge_suite(GUARD, items, RULE)
    assert report.verdict is verdict, report.explanation
    assert said in report.explanation


def test_target_without_margin_needs_a_gain_above_zero() -> None:
    rule = replace(TARGET, margin=0.0)
    assert judge_suite(rule, table(10, 0, 0, 10), RULE).verdict is INCONCLUSIVE
    passed = judge_suite(rule, table(50, 20, 4, 26), RULE)
    assert passed.verdict is PASS
    assert "; a gain is shown" in passed.explanation


def test_target_that_only_the_exact_test_doubts_is_inconclusive() -> None:
    # 6 wins, 0 losses of 1000: p = 0.016; 5 wins: the interval clears 0, the exact test does not.
    rule = replace(TARGET, margin=0.0)
    assert judge_suite(rule, table(0, 6, 0, 994), RULE).verdict is PASS
    doubted = judge_suite(rule, table(0, 5, 0, 995), RULE)
    assert doubted.ci_low > 0.0
    assert doubted.p_value == 0.03125
    assert doubted.verdict is INCONCLUSIVE


def test_explanation_has_the_numbers() -> None:
    report = judge_suite(GUARD, table(291, 0, 4, 5), RULE)
    assert report.explanation == (
        "easy: 98.3 % → 97.0 % (n=300); difference −1.3 points, 95 % CI [−3.4, −0.1]; "
        "a loss of more than 5 points is ruled out: non-inferior"
    )
    assert (report.n, report.only_incumbent, report.only_candidate) == (300, 4, 0)
    assert report.difference == pytest.approx(-4 / 300)


def test_inconclusive_says_how_many_items_would_do() -> None:
    report = judge_suite(GUARD, table(90, 2, 4, 4), RULE)
    assert report.verdict is INCONCLUSIVE
    assert "items would settle it 4 times in 5" in report.explanation
    level = judge_suite(replace(TARGET, margin=0.0), table(50, 10, 10, 30), RULE)
    assert "more items would not settle it" in level.explanation


def test_items_without_outcome_are_left_out_in_pairs() -> None:
    items = [*table(400, 0, 0, 100), pair(None, True), pair(False, None), pair(None, None)]
    report = judge_suite(GUARD, items, RULE)
    assert (report.n, report.num_errors) == (500, 3)
    assert report.incumbent_accuracy == report.candidate_accuracy == 0.8
    assert report.verdict is PASS
    assert "3 items without an outcome left out, the verdict does not hang on them" in (
        report.explanation
    )


def test_a_pass_that_missing_outcomes_could_overturn_is_no_pass() -> None:
    clean = table(283, 0, 7, 10)
    assert judge_suite(GUARD, clean, RULE).verdict is PASS
    report = judge_suite(GUARD, [*clean, *[pair(True, None)] * 6], RULE)
    assert report.num_errors == 6 <= 0.02 * 306
    assert report.verdict is INCONCLUSIVE
    assert "the verdict hangs on them: the rest says pass" in report.explanation


def test_a_fail_that_missing_outcomes_could_overturn_is_no_fail() -> None:
    rule = replace(TARGET, margin=0.02)
    clean = table(100, 3, 2, 295)
    assert judge_suite(rule, clean, RULE).verdict is FAIL
    report = judge_suite(rule, [*clean, *[pair(False, None)] * 8], RULE)
    assert report.verdict is INCONCLUSIVE
    assert "the rest says fail" in report.explanation


def test_known_halves_of_missing_pairs_count_in_the_worst_case() -> None:
    # The incumbent failed these too: whatever the candidate did, it lost nothing.
    report = judge_suite(GUARD, [*table(283, 0, 7, 10), *[pair(False, None)] * 6], RULE)
    assert report.verdict is PASS


def test_too_many_errors_are_inconclusive_even_when_the_rest_is_clear() -> None:
    items = [*table(50, 100, 0, 50), *[pair(None, True)] * 5]
    report = judge_suite(TARGET, items, RULE)
    assert report.verdict is INCONCLUSIVE
    assert "5 of 205 items have no outcome" in report.explanation


def test_a_suite_of_errors_only_is_inconclusive() -> None:
    rule = replace(RULE, max_error_fraction=1.0)
    report = judge_suite(TARGET, [pair(None, None)] * 10, rule)
    assert report.verdict is INCONCLUSIVE
    assert (report.n, report.ci_low, report.ci_high, report.p_value) == (0, -1.0, 1.0, 1.0)


def test_strata_are_reported_in_order() -> None:
    items = [pair(True, True, "b"), pair(False, True, "a"), pair(True, False, "b")]
    report = judge_suite(TARGET, items, RULE)
    assert [
        (s.stratum, s.n, s.incumbent_accuracy, s.candidate_accuracy) for s in report.strata
    ] == [
        ("b", 2, 1.0, 0.5),
        ("a", 1, 0.0, 1.0),
    ]
    assert judge_suite(TARGET, table(1, 1, 1, 1), RULE).strata == ()


def test_shrunken_and_truncated_answers_are_told() -> None:
    cut = item(Answer(True, 40), Answer(True, 64, truncated=True))
    report = judge_suite(TARGET, [cut] * 5, RULE)
    assert "cut off by the limit of 64 tokens: incumbent 0, candidate 5" in report.explanation
    short = item(Answer(True, 40), Answer(True, 19))
    report = judge_suite(TARGET, [short] * 5, RULE)
    assert "shrank to less than half: 19.0 tokens on average, the incumbent's 40.0" in (
        report.explanation
    )
    assert (report.incumbent_tokens_mean, report.candidate_tokens_mean) == (40.0, 19.0)
    half = item(Answer(True, 40), Answer(True, 20))
    assert "shrank" not in judge_suite(TARGET, [half] * 5, RULE).explanation


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [
        ([], INCONCLUSIVE),
        ([("target", PASS)], PASS),
        ([("guard", PASS)], INCONCLUSIVE),
        ([("target", PASS), ("guard", PASS)], PASS),
        ([("target", PASS), ("guard", INCONCLUSIVE)], INCONCLUSIVE),
        ([("target", INCONCLUSIVE), ("guard", FAIL)], FAIL),
        ([("target", PASS), ("guard", FAIL)], FAIL),
        ([("target", PASS), ("target", INCONCLUSIVE)], INCONCLUSIVE),
    ],
)
def test_combination(verdicts: list[tuple[str, GateVerdict]], overall: GateVerdict) -> None:
    assert combine([(SuiteRole(role), verdict) for role, verdict in verdicts]) is overall


def gate(*suites: tuple[SuiteMeasured, list[ItemMeasured]]) -> GateReport:
    measured = tuple(replace(suite, items=numbered(items)) for suite, items in suites)
    return decide(GateInputs("r", "opsd-1", "base", RULE, measured, 1.0, 2.0))


def test_overall_explanation_names_what_decided() -> None:
    good = (TARGET, table(50, 40, 5, 105))
    held = (GUARD, table(291, 0, 4, 5))
    harmed = (GUARD, table(200, 0, 60, 40))
    assert gate(good, held).explanation.startswith(
        "pass: 1 target suite improved, 1 guard suite held"
    )
    failed = gate(good, harmed)
    assert failed.verdict is FAIL
    assert failed.explanation == f"fail: 1 of 2 suites failed. {failed.suites[1].explanation}."
    assert 'role = "target"' in gate(held).explanation
    assert "[[gate.suites]]" in gate().explanation


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80),
    st.sampled_from([TARGET, GUARD]),
)
def test_a_better_outcome_never_makes_the_verdict_worse(
    outcomes: list[tuple[bool, bool]], rule: SuiteMeasured
) -> None:
    order = [FAIL, INCONCLUSIVE, PASS]
    before = judge_suite(rule, [pair(*outcome) for outcome in outcomes], RULE)
    failing = next((i for i, (_, candidate) in enumerate(outcomes) if not candidate), None)
    if failing is None:
        return
    better = [
        (incumbent, candidate or i == failing) for i, (incumbent, candidate) in enumerate(outcomes)
    ]
    after = judge_suite(rule, [pair(*outcome) for outcome in better], RULE)
    assert order.index(after.verdict) >= order.index(before.verdict)
