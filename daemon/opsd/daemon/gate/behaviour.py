"""Checks of how the answers are written: what self-distillation is known to take away.

Each check is judged by one interval: it passes where the interval lies within the limits, fails
where it lies beyond one, and is inconclusive else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from opsd.daemon.gate import wording
from opsd.daemon.gate.inputs import GateInputs
from opsd.daemon.gate.paired import Estimate, mean_difference
from opsd.daemon.gate.ratios import Amounts, RateRatio, rate_ratio
from opsd.daemon.gate.rules import BehaviourRules, GateRules
from opsd.daemon.types.engine import BASE
from opsd.daemon.types.gate import CheckKind, CheckReport, GateVerdict, SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm

NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two answers to one item; ``cluster`` is unique over all suites."""

    cluster: str
    reference: AnswerRecord
    candidate: AnswerRecord


Amount = Callable[[AnswerRecord], tuple[float, float]]
"""What is counted in an answer, and over how much."""


def judge_behaviour(inputs: GateInputs) -> tuple[CheckReport, ...]:
    """Every check, over the answers to all suites that are not sealed."""
    if not inputs.suites:
        return ()
    rules = inputs.rules
    judge = _Judge(rules, inputs.incumbent)
    pairs = list(_pairs(inputs, Arm.INCUMBENT))
    reports = [*_against_incumbent(judge, pairs, rules.behaviour)]
    reports += _since_base(inputs, pairs)
    reports.append(_literacy(inputs, judge))
    return tuple(report for report in reports if report is not None)


def _against_incumbent(
    judge: _Judge, pairs: Sequence[_Pair], limits: BehaviourRules
) -> Iterator[CheckReport | None]:
    yield judge.markers("markers", pairs, limits.markers_loss)
    right = [pair for pair in pairs if pair.reference.solved and pair.candidate.solved]
    wrong = [
        pair for pair in pairs if pair.reference.solved is False and pair.candidate.solved is False
    ]
    # Parts of the whole, which must be shown: of each it is enough that no loss is proven.
    yield _for_harm_only(judge.markers("markers_correct", right, limits.markers_loss))
    yield _for_harm_only(judge.markers("markers_incorrect", wrong, limits.markers_loss))
    yield judge.ratio("length", pairs, _tokens, limits.length_loss, limits.length_growth)
    yield judge.rate("truncated", pairs, lambda a: float(a.truncated), limits.truncated_gain)
    yield judge.rate("repetition", pairs, lambda a: a.repetition, limits.repetition_gain)
    yield judge.rate(
        "unformatted", pairs, lambda a: float(not a.formatted), limits.unformatted_gain
    )
    yield judge.rate("refusal", pairs, lambda a: float(a.refusal), limits.refusal_gain)
    yield judge.entropy("entropy", pairs, limits.entropy_loss)


def _since_base(inputs: GateInputs, pairs: Sequence[_Pair]) -> Iterator[CheckReport | None]:
    """Over all promotions since base: each step may be small and the way long."""
    limits = inputs.rules.behaviour
    judge = _Judge(inputs.rules, BASE)
    if inputs.incumbent != BASE:
        based = list(_pairs(inputs, Arm.BASE))
        if based:
            yield judge.markers("drift_markers", based, limits.drift_markers_loss)
            yield judge.ratio("drift_length", based, _tokens, limits.drift_length_loss, 0.0)
            yield judge.entropy("drift_entropy", based, limits.drift_entropy_loss)
        else:
            for name in ("drift_markers", "drift_length", "drift_entropy"):
                yield judge.without(name, CheckKind.RATIO, NOT_MEASURED)
    yield judge.level("drift_kl", pairs, limits.drift_kl_nats)


def _literacy(inputs: GateInputs, judge: _Judge) -> CheckReport | None:
    """Whether the candidate still reads a solution that stands in its prompt."""
    limits = inputs.rules.behaviour
    pairs = [
        _Pair(_cluster(suite.name, item.id, item.cluster), before, after)
        for suite in inputs.suites
        if not suite.sealed and suite.role is SuiteRole.TARGET
        for item in suite.items
        if (before := item.with_reference.get(Arm.INCUMBENT)) is not None
        and (after := item.with_reference.get(Arm.CANDIDATE)) is not None
        and before.solved is not None
        and after.solved is not None
    ]
    report = judge.rate(
        "literacy", pairs, lambda a: float(bool(a.solved)), limits.literacy_loss, -1
    )
    if report is None or limits.literacy_required:
        return report
    why = "told only: no run trains with this adapter as its teacher"
    return replace(report, verdict=None, explanation=f"{report.explanation}; {why}")


class _Judge:
    """Makes the reports of checks against one reference."""

    def __init__(self, rules: GateRules, against: str) -> None:
        self._rules = rules
        self._against = against

    def ratio(
        self, name: str, pairs: Sequence[_Pair], amount: Amount, loss: float, growth: float
    ) -> CheckReport | None:
        if not loss and not growth:
            return None
        found = rate_ratio(_amounts(pairs, amount), counts=False)
        if found is None:
            return self.without(name, CheckKind.RATIO, _why_no_ratio(pairs))
        return self._of_ratio(name, pairs, found, loss, growth)

    def markers(self, name: str, pairs: Sequence[_Pair], loss: float) -> CheckReport | None:
        if not loss:
            return None
        limits = self._rules.behaviour
        found = rate_ratio(_amounts(pairs, _markers), counts=True)
        if found is None:
            return self.without(name, CheckKind.RATIO, _why_no_ratio(pairs))
        seen = sum(pair.reference.markers for pair in pairs)
        report = self._of_ratio(name, pairs, found, loss, 0.0)
        if found.reference < limits.min_marker_density:
            words = sum(pair.reference.words for pair in pairs)
            why = f"{self._against} has {seen} in {words} words, so there is nothing to lose"
            return _unjudged(report, None, wording.check_without(name, why))
        if seen < limits.min_markers:
            why = (
                f"{self._against} has only {seen}, fewer than the {limits.min_markers} that a "
                "judgement takes: add items"
            )
            return _unjudged(report, GateVerdict.INCONCLUSIVE, wording.check_without(name, why))
        return report

    def entropy(self, name: str, pairs: Sequence[_Pair], loss: float) -> CheckReport | None:
        if not loss:
            return None
        scored = [
            pair
            for pair in pairs
            if pair.reference.entropy is not None and pair.candidate.entropy is not None
        ]
        if not scored:
            return self.without(name, CheckKind.RATIO, NOT_MEASURED)
        report = self.ratio(name, scored, _entropy, loss, 0.0)
        least = self._rules.behaviour.min_entropy_nats
        if report is not None and report.verdict is not None and report.reference < least:
            why = f"{self._against} has {report.reference:.3g} nats a token, nothing to lose"
            return _unjudged(report, None, wording.check_without(name, why))
        return report

    def rate(
        self,
        name: str,
        pairs: Sequence[_Pair],
        value: Callable[[AnswerRecord], float],
        limit: float,
        direction: int = 1,
    ) -> CheckReport | None:
        """Mean of a value in [0, 1]; ``direction`` -1 limits its fall instead of its rise."""
        if not limit:
            return None
        if not pairs:
            return self.without(name, CheckKind.DIFFERENCE, NOT_MEASURED)
        totals: dict[str, float] = {}
        sizes: dict[str, int] = {}
        for pair in pairs:
            change = value(pair.candidate) - value(pair.reference)
            totals[pair.cluster] = totals.get(pair.cluster, 0.0) + change
            sizes[pair.cluster] = sizes.get(pair.cluster, 0) + 1
        estimate = mean_difference(list(totals.values()), list(sizes.values()))
        interval = estimate.interval(self._rules.confidence)
        reference = _mean([value(pair.reference) for pair in pairs])
        candidate = _mean([value(pair.candidate) for pair in pairs])
        return self._judged(
            CheckReport(
                *(name, CheckKind.DIFFERENCE, self._against, len(pairs), reference, candidate),
                estimate=candidate - reference,
                ci_low=max(-1.0, interval.low),
                ci_high=min(1.0, interval.high),
                low=-limit if direction < 0 else None,
                high=limit if direction > 0 else None,
                verdict=None,
                explanation="",
            ),
            num_clusters=len(totals),
        )

    def level(self, name: str, pairs: Sequence[_Pair], budget: float) -> CheckReport | None:
        """Mean KL to base over tokens; a budget, not a comparison."""
        if not budget:
            return None
        scored = [pair for pair in pairs if pair.candidate.kl_to_base is not None]
        if len(scored) < 2:
            return self.without(name, CheckKind.LEVEL, NOT_MEASURED)
        estimate, num_clusters = _token_mean(scored)
        interval = estimate.interval(self._rules.confidence)
        return self._judged(
            CheckReport(
                *(name, CheckKind.LEVEL, self._against, len(scored), 0.0, estimate.value),
                estimate=estimate.value,
                ci_low=interval.low,
                ci_high=interval.high,
                low=None,
                high=budget,
                verdict=None,
                explanation="",
            ),
            num_clusters=num_clusters,
        )

    def without(self, name: str, kind: CheckKind, why: str) -> CheckReport:
        return CheckReport(
            *(name, kind, self._against, 0, 0.0, 0.0, 0.0, 0.0, 0.0, None, None, None),
            wording.check_without(name, why),
        )

    def _of_ratio(
        self, name: str, pairs: Sequence[_Pair], found: RateRatio, loss: float, growth: float
    ) -> CheckReport:
        interval = found.log_ratio.interval(self._rules.confidence)
        return self._judged(
            CheckReport(
                *(name, CheckKind.RATIO, self._against, len(pairs)),
                *(found.reference, found.candidate),
                estimate=math.exp(found.log_ratio.value),
                ci_low=_exp(interval.low),
                ci_high=_exp(interval.high),
                low=1.0 - loss if loss else None,
                high=1.0 + growth if growth else None,
                verdict=None,
                explanation="",
            ),
            num_clusters=len({pair.cluster for pair in pairs}),
        )

    def _judged(self, report: CheckReport, *, num_clusters: int) -> CheckReport:
        if num_clusters < self._rules.min_clusters:
            few = wording.few_clusters(num_clusters, self._rules.min_clusters)
            return _unjudged(
                report, GateVerdict.INCONCLUSIVE, wording.check_without(report.name, few)
            )
        judged = replace(report, verdict=_within(report))
        return replace(judged, explanation=wording.check(judged))


def _within(report: CheckReport) -> GateVerdict:
    low = -math.inf if report.low is None else report.low
    high = math.inf if report.high is None else report.high
    if low <= report.ci_low and report.ci_high <= high:
        return GateVerdict.PASS
    if report.ci_high < low or report.ci_low > high:
        return GateVerdict.FAIL
    return GateVerdict.INCONCLUSIVE


def _unjudged(report: CheckReport, verdict: GateVerdict | None, why: str) -> CheckReport:
    return replace(report, verdict=verdict, explanation=why)


def _for_harm_only(report: CheckReport | None) -> CheckReport | None:
    if report is None or report.verdict is not GateVerdict.INCONCLUSIVE:
        return report
    told = f"{report.explanation}; told only, the whole of them is judged"
    return _unjudged(report, None, told)


def _pairs(inputs: GateInputs, reference: Arm) -> Iterator[_Pair]:
    for suite in inputs.suites:
        if suite.sealed:
            continue
        for item in suite.items:
            cluster = _cluster(suite.name, item.id, item.cluster)
            for before, after in zip(
                item.answers.get(reference, ()), item.answers[Arm.CANDIDATE], strict=False
            ):
                # An answer that failed was not read either.
                if before.solved is not None and after.solved is not None:
                    yield _Pair(cluster, before, after)


def _cluster(suite: str, item: str, cluster: str) -> str:
    return f"{suite} cluster {cluster}" if cluster else f"{suite} item {item}"


def _amounts(pairs: Sequence[_Pair], amount: Amount) -> list[Amounts]:
    sums: dict[str, list[float]] = {}
    for pair in pairs:
        row = sums.setdefault(pair.cluster, [0.0, 0.0, 0.0, 0.0])
        for place, answer in ((0, pair.reference), (2, pair.candidate)):
            counted, size = amount(answer)
            row[place] += counted
            row[place + 1] += size
    return [Amounts(*row) for row in sums.values()]


def _markers(answer: AnswerRecord) -> tuple[float, float]:
    return float(answer.markers), float(answer.words)


def _tokens(answer: AnswerRecord) -> tuple[float, float]:
    return float(answer.tokens), 1.0


def _entropy(answer: AnswerRecord) -> tuple[float, float]:
    return (answer.entropy or 0.0) * answer.tokens, float(answer.tokens)


def _why_no_ratio(pairs: Sequence[_Pair]) -> str:
    return "there is nothing of it to compare" if pairs else "no answers of this kind"


def _token_mean(pairs: Sequence[_Pair]) -> tuple[Estimate, int]:
    """Mean over tokens of the candidate's KL, cluster-robust; and the number of clusters."""
    sums: dict[str, list[float]] = {}
    for pair in pairs:
        row = sums.setdefault(pair.cluster, [0.0, 0.0])
        row[0] += (pair.candidate.kl_to_base or 0.0) * pair.candidate.tokens
        row[1] += pair.candidate.tokens
    table_G2 = np.array(list(sums.values()))
    total, tokens = (float(x) for x in table_G2.sum(axis=0))
    value = total / max(tokens, 1.0)
    residuals_G = (table_G2[:, 0] - value * table_G2[:, 1]) / max(tokens, 1.0)
    num = len(table_G2)
    variance = num / max(1, num - 1) * float(residuals_G @ residuals_G)
    return Estimate(value, math.sqrt(variance), max(1, num - 1)), num


def _exp(value: float) -> float:
    """A ratio's bound, kept finite: a report is JSON."""
    return math.exp(min(value, 700.0))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
