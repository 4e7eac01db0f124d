"""The gate's decision rules: from paired outcomes to verdicts, with nothing read or written.

A target suite passes when a gain beyond its margin is shown, a guard suite when a loss beyond its
margin is ruled out; what is neither shown nor ruled out is inconclusive, never a pass. The gate
passes only if every suite does. docs/explanation/gate.md derives what errors that admits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from opsd.daemon.gate import wording
from opsd.daemon.gate.stats import items_to_settle, mcnemar_exact_p, paired_difference_interval
from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One adapter's answer to one item; ``solved`` is None when it could not be told."""

    solved: bool | None
    tokens: int
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class PairedItem:
    """Both adapters' answers to the same item."""

    stratum: str
    incumbent: Answer
    candidate: Answer


@dataclass(frozen=True, slots=True)
class SuiteRule:
    """What is asked of a suite; ``margin`` is a guard's tolerated loss or a target's least gain."""

    name: str
    role: SuiteRole
    margin: float
    sha256: str


@dataclass(frozen=True, slots=True)
class GateRule:
    """What holds for all suites; alpha is 1 - ``confidence``."""

    confidence: float
    max_error_fraction: float
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers that one suite's verdict rests on; fractions."""

    n: int
    wins: int  # only the candidate solved it
    losses: int  # only the incumbent solved it
    difference: float
    ci_low: float
    ci_high: float
    p_value: float


def weigh(outcomes: Sequence[tuple[bool, bool]], confidence: float) -> Evidence:
    """Evidence of (incumbent solved, candidate solved) pairs; without any, it excludes nothing."""
    n = len(outcomes)
    if n == 0:
        return Evidence(0, 0, 0, 0.0, -1.0, 1.0, 1.0)
    wins = sum(candidate and not incumbent for incumbent, candidate in outcomes)
    losses = sum(incumbent and not candidate for incumbent, candidate in outcomes)
    interval = paired_difference_interval(wins, losses, n, confidence=confidence)
    return Evidence(
        n=n,
        wins=wins,
        losses=losses,
        difference=(wins - losses) / n,
        ci_low=interval.low,
        ci_high=interval.high,
        p_value=mcnemar_exact_p(wins, losses),
    )


def verdict_of(role: SuiteRole, margin: float, evidence: Evidence, alpha: float) -> GateVerdict:
    """The rule for one suite; with alpha = 1 - confidence of the interval."""
    significant = evidence.p_value <= alpha
    if role is SuiteRole.TARGET:
        if evidence.ci_low > margin and significant:
            return GateVerdict.PASS
        if evidence.ci_high <= margin or (significant and evidence.difference < 0.0):
            return GateVerdict.FAIL
        return GateVerdict.INCONCLUSIVE
    if evidence.ci_low >= -margin:
        return GateVerdict.PASS
    if evidence.ci_high < -margin:
        return GateVerdict.FAIL
    return GateVerdict.INCONCLUSIVE


def judge_suite(rule: SuiteRule, items: Sequence[PairedItem], gate: GateRule) -> SuiteReport:
    """Report on one suite. Items without both outcomes are left out in pairs and counted."""
    paired = [item for item in items if _outcome(item) is not None]
    outcomes = [outcome for item in items if (outcome := _outcome(item)) is not None]
    evidence = weigh(outcomes, gate.confidence)
    n = evidence.n
    notes = wording.SideNotes(
        incumbent_truncated=sum(item.incumbent.truncated for item in paired),
        candidate_truncated=sum(item.candidate.truncated for item in paired),
        max_tokens=gate.max_tokens,
        incumbent_tokens_mean=_mean([item.incumbent.tokens for item in paired]),
        candidate_tokens_mean=_mean([item.candidate.tokens for item in paired]),
    )
    measured = verdict_of(rule.role, rule.margin, evidence, 1.0 - gate.confidence)
    report = SuiteReport(
        name=rule.name,
        role=rule.role,
        n=n,
        incumbent_accuracy=_mean([incumbent for incumbent, _ in outcomes]),
        candidate_accuracy=_mean([candidate for _, candidate in outcomes]),
        only_incumbent=evidence.losses,
        only_candidate=evidence.wins,
        difference=evidence.difference,
        ci_low=evidence.ci_low,
        ci_high=evidence.ci_high,
        confidence=gate.confidence,
        p_value=evidence.p_value,
        margin=rule.margin,
        verdict=measured,
        explanation="",
        incumbent_tokens_mean=notes.incumbent_tokens_mean,
        candidate_tokens_mean=notes.candidate_tokens_mean,
        strata=_strata(paired),
        num_errors=len(items) - n,
        suite_sha256=rule.sha256,
    )
    verdict, remarks = _weigh_errors(report, items, gate)
    said = [
        f"{wording.numbers(report)}; {wording.finding(report, measured)}",
        *remarks,
        *wording.side_notes(notes),
    ]
    return replace(report, verdict=verdict, explanation="; ".join(said))


def _weigh_errors(
    report: SuiteReport, items: Sequence[PairedItem], gate: GateRule
) -> tuple[GateVerdict, list[str]]:
    """The verdict after items without outcome are weighed, with what is to be said about it."""
    total = len(items)
    if report.num_errors > gate.max_error_fraction * total or report.n == 0:
        remark = wording.too_many_errors(report.num_errors, total, gate.max_error_fraction)
        return GateVerdict.INCONCLUSIVE, [remark]
    measured = report.verdict
    if measured is GateVerdict.INCONCLUSIVE:
        threshold = report.margin if report.role is SuiteRole.TARGET else -report.margin
        needed = items_to_settle(
            report.only_candidate,
            report.only_incumbent,
            report.n,
            threshold=threshold,
            confidence=gate.confidence,
        )
        said = [wording.more_items(needed, report.n)]
        if report.num_errors:
            said.append(wording.errors_left_out(report.num_errors))
        return measured, said
    if report.num_errors == 0:
        return measured, []
    # A candidate must not profit from breaking the verifier, nor be damned by lost items: a verdict
    # stands only if it would stand whatever the missing outcomes were.
    for candidate_luck in (False, True):
        outcomes = [_imputed(item, candidate_luck) for item in items]
        evidence = weigh(outcomes, gate.confidence)
        if verdict_of(report.role, report.margin, evidence, 1.0 - gate.confidence) is not measured:
            return GateVerdict.INCONCLUSIVE, [wording.errors_decide(report.num_errors, measured)]
    return measured, [wording.errors_harmless(report.num_errors)]


def judge_gate(
    *,
    run_id: str,
    candidate: str,
    incumbent: str,
    suites: Sequence[SuiteReport],
    started_unix_s: float,
    finished_unix_s: float,
) -> GateReport:
    """The whole gate: fail if any suite fails, pass if all pass and one of them is a target."""
    verdict = combine([(suite.role, suite.verdict) for suite in suites])
    return GateReport(
        run_id=run_id,
        candidate=candidate,
        incumbent=incumbent,
        verdict=verdict,
        explanation=wording.overall(verdict, tuple(suites)),
        suites=tuple(suites),
        started_unix_s=started_unix_s,
        finished_unix_s=finished_unix_s,
    )


def combine(verdicts: Sequence[tuple[SuiteRole, GateVerdict]]) -> GateVerdict:
    """Of all suites: any failure fails, every suite must pass, a target must be among them."""
    if any(verdict is GateVerdict.FAIL for _, verdict in verdicts):
        return GateVerdict.FAIL
    has_target = any(role is SuiteRole.TARGET for role, _ in verdicts)
    if has_target and all(verdict is GateVerdict.PASS for _, verdict in verdicts):
        return GateVerdict.PASS
    return GateVerdict.INCONCLUSIVE


def _outcome(item: PairedItem) -> tuple[bool, bool] | None:
    incumbent, candidate = item.incumbent.solved, item.candidate.solved
    return None if incumbent is None or candidate is None else (incumbent, candidate)


def _imputed(item: PairedItem, candidate_luck: bool) -> tuple[bool, bool]:
    """What is known stays; what is not falls for the candidate or against it."""
    incumbent, candidate = item.incumbent.solved, item.candidate.solved
    return (
        not candidate_luck if incumbent is None else incumbent,
        candidate_luck if candidate is None else candidate,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _strata(items: Sequence[PairedItem]) -> tuple[StratumReport, ...]:
    """Strata in the order of their first item; unnamed ones are left out unless some are named."""
    groups: dict[str, list[PairedItem]] = {}
    for item in items:
        groups.setdefault(item.stratum, []).append(item)
    if set(groups) <= {""}:
        return ()
    return tuple(
        StratumReport(
            stratum=stratum,
            n=len(group),
            incumbent_accuracy=_mean([bool(item.incumbent.solved) for item in group]),
            candidate_accuracy=_mean([bool(item.candidate.solved) for item in group]),
        )
        for stratum, group in groups.items()
    )
