"""Non-inferiority within strata, and what a gate's number costs."""

from dataclasses import replace

from opsd.daemon.gate.decision import judge_suite
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.types.gate import GateVerdict, SuiteReport, SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured

PASS, FAIL, INCONCLUSIVE = GateVerdict.PASS, GateVerdict.FAIL, GateVerdict.INCONCLUSIVE
RULES = GateRules()


def part(stratum: str, both: int, wins: int, losses: int) -> list[ItemMeasured]:
    outcomes = [(True, True)] * both + [(False, True)] * wins + [(True, False)] * losses
    return [
        ItemMeasured(
            f"{stratum}{number}",
            {
                Arm.INCUMBENT: (AnswerRecord(before, 10),),
                Arm.CANDIDATE: (AnswerRecord(after, 10),),
            },
            stratum,
        )
        for number, (before, after) in enumerate(outcomes)
    ]


def judge(
    role: SuiteRole, *parts: list[ItemMeasured], margin: float = 0.1, num_uses: int = 0
) -> SuiteReport:
    items = tuple(item for part in parts for item in part)
    suite = SuiteMeasured("s", "1", "0" * 64, role, 0.05, items, stratum_margin=margin)
    return judge_suite(replace(suite, num_uses=num_uses), RULES)


def test_a_guard_that_holds_as_a_whole_fails_by_one_stratum() -> None:
    parts = (part("many", 900, 40, 0), part("few", 60, 0, 40))
    report = judge(SuiteRole.GUARD, *parts)
    assert report.ci_low > -0.05
    assert [s.verdict for s in report.strata] == [PASS, FAIL]
    assert report.verdict is FAIL
    assert "stratum 'few'" in report.explanation
    assert judge(SuiteRole.GUARD, *parts, margin=0.0).verdict is PASS


def test_a_stratum_too_small_to_clear_is_inconclusive() -> None:
    report = judge(SuiteRole.GUARD, part("many", 900, 0, 0), part("few", 15, 0, 0))
    assert [s.verdict for s in report.strata] == [PASS, INCONCLUSIVE]
    assert report.verdict is INCONCLUSIVE
    assert "is not ruled out" in report.explanation


def test_a_single_stratum_is_the_suite_itself() -> None:
    (stratum,) = judge(SuiteRole.GUARD, part("all", 300, 0, 0)).strata
    assert (stratum.margin, stratum.verdict) == (0.0, None)


def test_more_strata_ask_for_more_of_each() -> None:
    """The same stratum clears as one of two and not as one of twelve."""
    small = part("small", 48, 0, 0)
    sure = [part(f"s{number}", 48, 0, 0) for number in range(11)]
    assert judge(SuiteRole.GUARD, small, part("big", 900, 0, 0)).strata[0].verdict is PASS
    assert judge(SuiteRole.GUARD, small, *sure).strata[0].verdict is INCONCLUSIVE


def test_a_target_fails_by_a_stratum_that_broke_and_not_by_a_small_one() -> None:
    report = judge(SuiteRole.TARGET, part("a", 200, 300, 0), part("b", 40, 0, 60))
    assert report.difference > 0.2
    assert report.verdict is FAIL
    assert judge(SuiteRole.TARGET, part("a", 200, 300, 0), part("b", 5, 0, 0)).verdict is PASS


def test_a_broken_stratum_fails_a_guard_that_is_unsettled_as_a_whole() -> None:
    report = judge(SuiteRole.GUARD, part("a", 60, 25, 0), part("b", 20, 0, 35))
    assert report.ci_low < -0.05 < report.ci_high
    assert report.verdict is FAIL


def test_items_of_few_clusters_settle_nothing() -> None:
    items = [replace(item, cluster=str(n % 6)) for n, item in enumerate(part("", 40, 160, 0))]
    report = judge(SuiteRole.TARGET, items)
    assert report.p_value < report.alpha
    assert report.verdict is INCONCLUSIVE
    assert "6 independent clusters are too few to judge by, 10 are needed" in report.explanation
    many = [replace(item, cluster=str(n % 20)) for n, item in enumerate(part("", 40, 160, 0))]
    assert judge(SuiteRole.TARGET, many).verdict is PASS


def test_a_suite_that_cannot_be_used_settles_nothing() -> None:
    for sealed in (True, False):
        suite = SuiteMeasured("s", "1", "0" * 64, SuiteRole.TARGET, 0.0, (), sealed=sealed)
        report = judge_suite(replace(suite, unusable="its budget of 4 queries is spent"), RULES)
        assert report.verdict is INCONCLUSIVE
        assert report.explanation == "s: not used: its budget of 4 queries is spent"


def test_a_gain_must_be_clearer_at_every_further_gate() -> None:
    gain = part("", 460, 70, 22)
    first = judge(SuiteRole.TARGET, gain)
    assert first.verdict is PASS
    assert (first.gate_number, round(first.alpha, 4)) == (1, 0.0304)
    later = judge(SuiteRole.TARGET, gain, num_uses=11)
    assert later.p_value == first.p_value > later.alpha
    assert later.verdict is INCONCLUSIVE
    assert "in gate 12 on these items" in later.explanation
    assert later.confidence > first.confidence
