"""The gate's decision rules: from measured answers to verdicts, with nothing read or written.

A target suite passes when a gain beyond its margin is shown at the level that is left for it, a
guard suite when a loss beyond its margin is ruled out, in each stratum too; every check of the
answers' behaviour must rule out a move beyond its limit. What is neither shown nor ruled out is
inconclusive, never a pass. docs/explanation/gate.md derives what errors that admits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from opsd.daemon.gate import wording
from opsd.daemon.gate.behaviour import judge_behaviour
from opsd.daemon.gate.evidence import Evidence, imputed_pairs, known_pairs, weigh
from opsd.daemon.gate.inputs import GateInputs, digest, encode
from opsd.daemon.gate.multiple import spent_alpha
from opsd.daemon.gate.rules import VERSION, GateRules
from opsd.daemon.gate.stats import items_to_settle
from opsd.daemon.gate.strata import accuracies, judge_strata
from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured


def decide(inputs: GateInputs) -> GateReport:
    """The gate's report; the same inputs always give the same report."""
    suites = tuple(judge_suite(suite, inputs.rules) for suite in inputs.suites)
    checks = judge_behaviour(inputs)
    verdict = combine(
        [(suite.role, suite.verdict) for suite in suites],
        [check.verdict for check in checks if check.verdict is not None],
    )
    return GateReport(
        run_id=inputs.run_id,
        candidate=inputs.candidate,
        incumbent=inputs.incumbent,
        verdict=verdict,
        explanation=wording.overall(verdict, suites, checks),
        suites=suites,
        started_unix_s=inputs.started_unix_s,
        finished_unix_s=inputs.finished_unix_s,
        checks=checks,
        gate_inputs_sha256=digest(encode(inputs)),
        rules_version=VERSION,
    )


def combine(
    suites: Sequence[tuple[SuiteRole, GateVerdict]], checks: Sequence[GateVerdict] = ()
) -> GateVerdict:
    """Any failure fails, everything must pass, a target must be among the suites."""
    verdicts = [*(verdict for _, verdict in suites), *checks]
    if any(verdict is GateVerdict.FAIL for verdict in verdicts):
        return GateVerdict.FAIL
    has_target = any(role is SuiteRole.TARGET for role, _ in suites)
    if has_target and all(verdict is GateVerdict.PASS for verdict in verdicts):
        return GateVerdict.PASS
    return GateVerdict.INCONCLUSIVE


def verdict_of(
    role: SuiteRole, margin: float, evidence: Evidence, *, alpha: float, one_sided: float
) -> GateVerdict:
    """The rule for one suite. ``alpha`` is what a gain must be shown at, ``one_sided`` the level of
    everything else."""
    if role is SuiteRole.TARGET:
        if gain_p(margin, evidence) <= alpha:
            return GateVerdict.PASS
        if evidence.p_below(margin) <= one_sided:
            return GateVerdict.FAIL
        return GateVerdict.INCONCLUSIVE
    if evidence.p_above(-margin) <= one_sided:
        return GateVerdict.PASS
    if evidence.p_below(-margin) <= one_sided:
        return GateVerdict.FAIL
    return GateVerdict.INCONCLUSIVE


def gain_p(margin: float, evidence: Evidence) -> float:
    """A gain beyond the margin must convince both tests: the exact one knows no margin, the other
    is an approximation."""
    return max(evidence.p_gain, evidence.p_above(margin))


def judge_suite(suite: SuiteMeasured, rules: GateRules) -> SuiteReport:
    """Report on one suite. Answers without both outcomes are left out in pairs and counted."""
    evidence = weigh(known_pairs(suite.items))
    report, verdict, said = _judge_measured(suite, evidence, rules)
    if suite.unusable:
        verdict, said = GateVerdict.INCONCLUSIVE, [wording.unusable(suite.name, suite.unusable)]
    if suite.sealed:
        return _sealed(report, verdict, suite.unusable)
    return replace(report, verdict=verdict, explanation="; ".join(said))


def _judge_measured(
    suite: SuiteMeasured, evidence: Evidence, rules: GateRules
) -> tuple[SuiteReport, GateVerdict, list[str]]:
    gate_number = suite.num_uses + 1
    is_target = suite.role is SuiteRole.TARGET
    alpha = spent_alpha(rules.alpha, gate_number) if is_target else rules.one_sided
    measured = verdict_of(
        suite.role, suite.margin, evidence, alpha=alpha, one_sided=rules.one_sided
    )
    report = _numbers(suite, evidence, alpha, measured, rules)
    worse = evidence.p_loss <= rules.one_sided
    said = [f"{wording.numbers(report)}; {wording.finding(report, measured, worse=worse)}"]
    verdict, remarks = _weigh_doubts(report, evidence, suite, rules)
    strata_verdict, strata_said = _weigh_strata(report.strata, suite.role)
    if strata_verdict is GateVerdict.FAIL or verdict is GateVerdict.PASS:
        verdict = strata_verdict
    said += [*remarks, *strata_said, *_side_notes(suite, report, rules)]
    return report, verdict, said


def _numbers(
    suite: SuiteMeasured, evidence: Evidence, alpha: float, verdict: GateVerdict, rules: GateRules
) -> SuiteReport:
    is_target = suite.role is SuiteRole.TARGET
    # The interval that agrees with the test: for a target its level is what is left to spend.
    confidence = 1.0 - 2.0 * alpha if is_target else rules.confidence
    interval = evidence.interval(confidence)
    before, after = accuracies(suite.items)
    paired = [answers for item in suite.items for answers in _paired_answers(item)]
    num_answers = sum(len(item.answers[Arm.CANDIDATE]) for item in suite.items)
    return SuiteReport(
        name=suite.name,
        role=suite.role,
        n=evidence.n,
        incumbent_accuracy=before,
        candidate_accuracy=after,
        only_incumbent=evidence.losses,
        only_candidate=evidence.wins,
        difference=evidence.difference,
        ci_low=interval.low,
        ci_high=interval.high,
        confidence=confidence,
        p_value=gain_p(suite.margin, evidence) if is_target else evidence.p_above(-suite.margin),
        margin=suite.margin,
        verdict=verdict,
        explanation="",
        incumbent_tokens_mean=_mean([incumbent.tokens for incumbent, _ in paired]),
        candidate_tokens_mean=_mean([candidate.tokens for _, candidate in paired]),
        strata=judge_strata(suite, rules),
        num_errors=num_answers - len(paired),
        suite_sha256=suite.sha256,
        version=suite.version,
        sealed=suite.sealed,
        alpha=alpha,
        gate_number=suite.num_uses + 1,
        method=evidence.method,
        num_clusters=evidence.num_clusters,
        num_samples=max((len(item.answers[Arm.CANDIDATE]) for item in suite.items), default=0),
        incumbent_pass_at_k=_pass_at_k(suite.items, Arm.INCUMBENT),
        candidate_pass_at_k=_pass_at_k(suite.items, Arm.CANDIDATE),
    )


def _weigh_doubts(
    report: SuiteReport, evidence: Evidence, suite: SuiteMeasured, rules: GateRules
) -> tuple[GateVerdict, list[str]]:
    """The verdict after missing outcomes and few clusters are weighed, and what is to be said."""
    total = sum(len(item.answers[Arm.CANDIDATE]) for item in suite.items)
    unit = "item" if report.num_samples <= 1 else "answer"
    if report.num_errors > rules.max_error_fraction * total or report.n == 0:
        remark = wording.too_many_errors(report.num_errors, total, rules.max_error_fraction, unit)
        return GateVerdict.INCONCLUSIVE, [remark]
    if evidence.method == "cluster" and evidence.num_clusters < rules.min_clusters:
        return GateVerdict.INCONCLUSIVE, [
            wording.few_clusters(evidence.num_clusters, rules.min_clusters)
        ]
    if report.verdict is GateVerdict.INCONCLUSIVE:
        said = [_more_items(report)] if evidence.method == "mcnemar" else []
        if report.num_errors:
            said.append(wording.errors_left_out(report.num_errors, unit))
        return report.verdict, said
    if report.num_errors == 0:
        return report.verdict, []
    # A candidate must not profit from breaking the verifier, nor be damned by lost items: a verdict
    # stands only if it would stand whatever the missing outcomes were.
    for candidate_luck in (False, True):
        imputed = weigh(imputed_pairs(suite.items, candidate_luck=candidate_luck))
        again = verdict_of(
            *(suite.role, suite.margin, imputed), alpha=report.alpha, one_sided=rules.one_sided
        )
        if again is not report.verdict:
            remark = wording.errors_decide(report.num_errors, report.verdict, unit)
            return GateVerdict.INCONCLUSIVE, [remark]
    return report.verdict, [wording.errors_harmless(report.num_errors, unit)]


def _more_items(report: SuiteReport) -> str:
    threshold = report.margin if report.role is SuiteRole.TARGET else -report.margin
    needed = items_to_settle(
        report.only_candidate,
        report.only_incumbent,
        report.n,
        threshold=threshold,
        confidence=report.confidence,
    )
    return wording.more_items(needed, report.n)


def _weigh_strata(
    strata: Sequence[StratumReport], role: SuiteRole
) -> tuple[GateVerdict, list[str]]:
    """What the strata make of a suite that passes as a whole."""
    verdicts = {stratum.verdict for stratum in strata if stratum.verdict is not None}
    told = [stratum for stratum in strata if _is_told(stratum, role)]
    said = [wording.stratum(stratum) for stratum in told]
    if GateVerdict.FAIL in verdicts:
        return GateVerdict.FAIL, said
    if GateVerdict.INCONCLUSIVE in verdicts and role is SuiteRole.GUARD:
        return GateVerdict.INCONCLUSIVE, said
    return GateVerdict.PASS, said


def _is_told(stratum: StratumReport, role: SuiteRole) -> bool:
    unsettled = stratum.verdict is GateVerdict.INCONCLUSIVE and role is SuiteRole.GUARD
    return stratum.verdict is GateVerdict.FAIL or unsettled


def _side_notes(suite: SuiteMeasured, report: SuiteReport, rules: GateRules) -> list[str]:
    paired = [answers for item in suite.items for answers in _paired_answers(item)]
    return wording.side_notes(
        wording.SideNotes(
            incumbent_truncated=sum(incumbent.truncated for incumbent, _ in paired),
            candidate_truncated=sum(candidate.truncated for _, candidate in paired),
            max_tokens=rules.max_tokens,
            incumbent_tokens_mean=report.incumbent_tokens_mean,
            candidate_tokens_mean=report.candidate_tokens_mean,
        )
    )


def _sealed(report: SuiteReport, verdict: GateVerdict, unusable: str) -> SuiteReport:
    """The verdict and nothing that could be fitted to: no count, rate, interval or stratum."""
    nothing = {
        "n": 0,
        "incumbent_accuracy": 0.0,
        "candidate_accuracy": 0.0,
        "only_incumbent": 0,
        "only_candidate": 0,
        "difference": 0.0,
        "ci_low": 0.0,
        "ci_high": 0.0,
        "p_value": 0.0,
        "incumbent_tokens_mean": 0.0,
        "candidate_tokens_mean": 0.0,
        "strata": (),
        "num_errors": 0,
        "num_clusters": 0,
        "incumbent_pass_at_k": 0.0,
        "candidate_pass_at_k": 0.0,
    }
    return replace(
        report,
        **nothing,  # type: ignore[arg-type]  # fields of several types
        verdict=verdict,
        explanation=wording.sealed(report.name, report.role, verdict, unusable),
    )


def _paired_answers(item: ItemMeasured) -> list[tuple[AnswerRecord, AnswerRecord]]:
    return [
        (incumbent, candidate)
        for incumbent, candidate in zip(
            item.answers[Arm.INCUMBENT], item.answers[Arm.CANDIDATE], strict=True
        )
        if incumbent.solved is not None and candidate.solved is not None
    ]


def _pass_at_k(items: Sequence[ItemMeasured], arm: Arm) -> float:
    return _mean([any(answer.solved for answer in item.answers[arm]) for item in items])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
