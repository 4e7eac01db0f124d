"""The sentences of a gate report, with their numbers, for the person who decides."""

from __future__ import annotations

from dataclasses import dataclass

from opsd.daemon.types.gate import (
    CheckKind,
    CheckReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)

MINUS = "\N{MINUS SIGN}"

NO_SUITES = (
    "no held-out suite is configured, so nothing was measured: add [[gate.suites]] entries with "
    'name, path, role and margin, at least one of them with role = "target"'
)
NO_TARGET = (
    'no suite has role = "target", so no improvement was asked for and none was shown: add a '
    '[[gate.suites]] entry with role = "target"'
)


@dataclass(frozen=True, slots=True)
class SideNotes:
    """What a reader should know beside the verdict; counts are items of one suite."""

    incumbent_truncated: int
    candidate_truncated: int
    max_tokens: int
    incumbent_tokens_mean: float
    candidate_tokens_mean: float


def percent(fraction: float) -> str:
    return f"{100.0 * fraction:.1f} %"


def points(fraction: float) -> str:
    """A signed difference in percentage points, without the unit."""
    text = f"{100.0 * fraction:+.1f}".replace("-", MINUS)
    return "0.0" if text in {"+0.0", f"{MINUS}0.0"} else text


def size(fraction: float) -> str:
    """An unsigned size in percentage points, without needless digits."""
    return f"{100.0 * fraction:.4g}"


def numbers(suite: SuiteReport) -> str:
    return (
        f"{suite.name}: {percent(suite.incumbent_accuracy)} → {percent(suite.candidate_accuracy)} "
        f"(n={suite.n}); difference {points(suite.difference)} points, "
        f"{100.0 * suite.confidence:.4g} % CI [{points(suite.ci_low)}, {points(suite.ci_high)}]"
    )


def p_value(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def finding(suite: SuiteReport, verdict: GateVerdict, *, worse: bool) -> str:
    """What the interval and the test say, before errors are weighed; ``worse`` where a loss is
    proven."""
    p = p_value(suite.p_value)
    if suite.role is SuiteRole.GUARD:
        if verdict is GateVerdict.PASS:
            return f"a loss of more than {size(suite.margin)} points is ruled out: non-inferior"
        if verdict is GateVerdict.FAIL:
            return f"a loss of more than {size(suite.margin)} points is proven: worse"
        return f"a loss of more than {size(suite.margin)} points is neither ruled out nor proven"
    gain = f"a gain of more than {size(suite.margin)} points" if suite.margin else "a gain"
    level = f"{p}, {spending(suite)}"
    if verdict is GateVerdict.PASS:
        return f"{gain} is shown ({level}): improved"
    if verdict is GateVerdict.FAIL:
        if worse:
            return f"a loss is proven, so {gain} is ruled out: it became worse"
        return f"{gain} is ruled out: not improved"
    return f"{gain} is neither shown nor ruled out ({level})"


def spending(suite: SuiteReport) -> str:
    """The level that is left for a gain after the gates before."""
    level = f"{suite.alpha:.3g} allowed"
    if suite.gate_number == 1:
        return f"{level} in the first gate on these items"
    return f"{level} in gate {suite.gate_number} on these items"


def stratum(report: StratumReport) -> str:
    limit = f"a loss of {size(report.margin)} points"
    change = points(report.candidate_accuracy - report.incumbent_accuracy)
    where = f"stratum {report.stratum!r} ({change} points, n={report.n})"
    if report.verdict is GateVerdict.FAIL:
        return f"{where}: more than {limit} is proven (adjusted {p_value(report.p_harmed)})"
    return f"{where}: {limit} is not ruled out (adjusted {p_value(report.p_held)})"


def few_clusters(num_clusters: int, least: int) -> str:
    return (
        f"{num_clusters} independent clusters are too few to judge by, {least} are needed: add "
        "items of other clusters"
    )


def unusable(name: str, why: str) -> str:
    return f"{name}: not used: {why}"


def sealed(name: str, role: SuiteRole, verdict: GateVerdict, why_unusable: str) -> str:
    """All that is told of a sealed suite."""
    if why_unusable:
        return unusable(name, why_unusable)
    shown = {
        (SuiteRole.TARGET, GateVerdict.PASS): "improved",
        (SuiteRole.TARGET, GateVerdict.FAIL): "not improved",
        (SuiteRole.GUARD, GateVerdict.PASS): "held",
        (SuiteRole.GUARD, GateVerdict.FAIL): "worse",
    }
    return f"{name} (sealed): {shown.get((role, verdict), 'not settled')}"


_CHECKED = {
    "markers": "epistemic markers a word",
    "markers_correct": "epistemic markers a word where both are right",
    "markers_incorrect": "epistemic markers a word where both are wrong",
    "length": "tokens an answer",
    "truncated": "answers cut off",
    "repetition": "repeated word 4-grams",
    "unformatted": "answers in which no answer is found",
    "refusal": "refusals",
    "entropy": "entropy, nats a token",
    "drift_markers": "epistemic markers a word, since base",
    "drift_length": "tokens an answer, since base",
    "drift_entropy": "entropy since base, nats a token",
    "drift_kl": "KL to base, nats a token",
    "literacy": "solved with the solution in the prompt",
}


def check(report: CheckReport) -> str:
    """One check in words and numbers."""
    what = f"{report.name}: {_CHECKED[report.name]}"
    if report.kind is CheckKind.RATIO:
        numbers = (
            f"{report.reference:.4g} → {report.candidate:.4g}, ×{report.estimate:.2f} "
            f"[{report.ci_low:.2f}, {report.ci_high:.2f}]"
        )
        limits = [f"×{limit:.2f}" for limit in (report.low, report.high) if limit is not None]
    elif report.kind is CheckKind.DIFFERENCE:
        numbers = (
            f"{percent(report.reference)} → {percent(report.candidate)}, {points(report.estimate)} "
            f"points [{points(report.ci_low)}, {points(report.ci_high)}]"
        )
        limits = [
            f"{points(limit)} points" for limit in (report.low, report.high) if limit is not None
        ]
    else:
        numbers = f"{report.candidate:.3g} [{report.ci_low:.3g}, {report.ci_high:.3g}]"
        limits = [f"{limit:.3g}" for limit in (report.low, report.high) if limit is not None]
    said = f"{what} {numbers} (n={report.n})"
    limit = " and ".join(limits)
    if report.verdict is GateVerdict.FAIL:
        return f"{said}: beyond the limit of {limit}"
    if report.verdict is GateVerdict.INCONCLUSIVE:
        return f"{said}: a move beyond {limit} is not ruled out"
    return f"{said}: within {limit}" if limits else said


def check_without(name: str, why: str) -> str:
    return f"{name}: {_CHECKED[name]}: {why}"


def more_items(needed: int | None, n: int) -> str:
    if needed is None:
        return (
            "the measured difference lies so close to the limit that more items would not settle it"
        )
    if needed <= n:
        return "if the true difference is as measured, a suite of this size settles it 4 times in 5"
    return (
        f"if the true difference is as measured, about {rounded(needed):,} items would settle it "
        "4 times in 5"
    )


def rounded(count: int) -> int:
    """Two significant digits, upwards: an estimate should not look like a measurement."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def too_many_errors(num_errors: int, total: int, limit: float, unit: str) -> str:
    return (
        f"{num_errors} of {total} {unit}s have no outcome, more than gate.max_error_fraction "
        f"({percent(limit)}) allows: see the daemon's log for what went wrong, then evaluate again"
    )


def errors_left_out(num_errors: int, unit: str) -> str:
    return f"{num_errors} {unit if num_errors == 1 else unit + 's'} without an outcome left out"


def errors_harmless(num_errors: int, unit: str) -> str:
    return f"{errors_left_out(num_errors, unit)}, the verdict does not hang on them"


def errors_decide(num_errors: int, verdict: GateVerdict, unit: str) -> str:
    return (
        f"{errors_left_out(num_errors, unit)}, and the verdict hangs on them: the rest says "
        f"{verdict.value}, their outcomes could overturn it"
    )


def side_notes(notes: SideNotes) -> list[str]:
    said = []
    if notes.incumbent_truncated or notes.candidate_truncated:
        said.append(
            f"answers cut off by the limit of {notes.max_tokens} tokens: incumbent "
            f"{notes.incumbent_truncated}, candidate {notes.candidate_truncated}"
        )
    if notes.candidate_tokens_mean < 0.5 * notes.incumbent_tokens_mean:
        said.append(
            f"the candidate's answers shrank to less than half: {notes.candidate_tokens_mean:.1f} "
            f"tokens on average, the incumbent's {notes.incumbent_tokens_mean:.1f}"
        )
    return said


def overall(
    verdict: GateVerdict, suites: tuple[SuiteReport, ...], checks: tuple[CheckReport, ...] = ()
) -> str:
    """The whole gate in a few sentences: what decided it, each with its numbers."""
    if not suites:
        return f"inconclusive: {NO_SUITES}."
    deciding = [suite for suite in suites if suite.verdict is verdict]
    moved = [report for report in checks if report.verdict is verdict]
    details = "".join(f" {suite.explanation}." for suite in deciding)
    if verdict is GateVerdict.PASS:
        targets = sum(suite.role is SuiteRole.TARGET for suite in suites)
        guards = len(suites) - targets
        behaviour = f", {len(moved)} checks of the answers held" if moved else ""
        return (
            f"pass: {targets} target {_suites(targets)} improved, {guards} guard {_suites(guards)} "
            f"held{behaviour}.{details}"
        )
    if verdict is GateVerdict.INCONCLUSIVE and not deciding and not moved:
        return f"inconclusive: {NO_TARGET}."
    outcome = "failed" if verdict is GateVerdict.FAIL else "settled nothing"
    counted = []
    if deciding:
        counted.append(f"{len(deciding)} of {len(suites)} {_suites(len(suites))}")
    if moved:
        judged = sum(report.verdict is not None for report in checks)
        counted.append(f"{len(moved)} of {judged} checks of the answers")
        details += "".join(f" {report.explanation}." for report in moved)
    return f"{verdict.value}: {' and '.join(counted)} {outcome}.{details}"


def _suites(count: int) -> str:
    return "suite" if count == 1 else "suites"
