"""Non-inferiority within the strata of a suite."""

from __future__ import annotations

from collections.abc import Sequence

from opsd.daemon.gate.evidence import known_pairs, weigh
from opsd.daemon.gate.multiple import holm
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.types.gate import GateVerdict, StratumReport, SuiteRole
from opsd.daemon.types.measured import ItemMeasured, SuiteMeasured


def judge_strata(suite: SuiteMeasured, rules: GateRules) -> tuple[StratumReport, ...]:
    """Strata in the order of their first item; none where none is named.

    With a stratum margin and at least two strata, each is judged: of a guard, each must be shown
    not to have lost the margin; of a target, none may be shown to have. Both kinds of statement are
    Holm-adjusted over the strata, at half of 1 - confidence each.
    """
    groups: dict[str, list[ItemMeasured]] = {}
    for item in suite.items:
        groups.setdefault(item.stratum, []).append(item)
    if set(groups) <= {""}:
        return ()
    margin = suite.stratum_margin if len(groups) > 1 else 0.0
    weighed = {name: weigh(known_pairs(items)) for name, items in groups.items()}
    held = holm([evidence.p_above(-margin) for evidence in weighed.values()])
    harmed = holm([evidence.p_below(-margin) for evidence in weighed.values()])
    reports = []
    for (name, items), evidence, p_held, p_harmed in zip(
        groups.items(), weighed.values(), held, harmed, strict=True
    ):
        before, after = accuracies(items)
        report = StratumReport(name, evidence.n, before, after)
        if margin:
            # Of a few clusters no distribution is known: they neither clear nor convict.
            few = evidence.num_clusters < rules.min_clusters
            report = StratumReport(
                *(name, evidence.n, before, after, margin, p_held, p_harmed),
                GateVerdict.INCONCLUSIVE
                if few
                else _verdict(suite.role, p_held, p_harmed, rules.one_sided),
            )
        reports.append(report)
    return tuple(reports)


def accuracies(items: Sequence[ItemMeasured]) -> tuple[float, float]:
    """avg@k of incumbent and candidate over the items that both have an outcome of."""
    pairs = [item.outcomes for item in known_pairs(items)]
    if not pairs:
        return 0.0, 0.0
    before = sum(sum(i for i, _ in outcomes) / len(outcomes) for outcomes in pairs)
    after = sum(sum(c for _, c in outcomes) / len(outcomes) for outcomes in pairs)
    return before / len(pairs), after / len(pairs)


def _verdict(role: SuiteRole, p_held: float, p_harmed: float, alpha: float) -> GateVerdict:
    if p_harmed <= alpha:
        return GateVerdict.FAIL
    if role is SuiteRole.TARGET or p_held <= alpha:
        return GateVerdict.PASS
    return GateVerdict.INCONCLUSIVE
