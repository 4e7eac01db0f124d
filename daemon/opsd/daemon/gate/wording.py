"""The sentences of a gate report, with their numbers, for the person who decides."""

from __future__ import annotations

from dataclasses import dataclass

from opsd.daemon.types.gate import GateVerdict, SuiteReport, SuiteRole

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


def finding(suite: SuiteReport, verdict: GateVerdict) -> str:
    """What the interval and the test say, before errors are weighed."""
    p = p_value(suite.p_value)
    if suite.role is SuiteRole.GUARD:
        if verdict is GateVerdict.PASS:
            return f"a loss of more than {size(suite.margin)} points is ruled out: non-inferior"
        if verdict is GateVerdict.FAIL:
            return f"a loss of more than {size(suite.margin)} points is proven: worse"
        return f"a loss of more than {size(suite.margin)} points is neither ruled out nor proven"
    gain = f"a gain of more than {size(suite.margin)} points" if suite.margin else "a gain"
    if verdict is GateVerdict.PASS:
        return f"{gain} is shown ({p}): improved"
    if verdict is GateVerdict.FAIL:
        if suite.p_value <= 1.0 - suite.confidence and suite.difference < 0.0:
            return f"it became worse ({p})"
        return f"{gain} is ruled out ({p}): not improved"
    return f"{gain} is neither shown nor ruled out ({p})"


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


def too_many_errors(num_errors: int, total: int, limit: float) -> str:
    return (
        f"{num_errors} of {total} items have no outcome, more than gate.max_error_fraction "
        f"({percent(limit)}) allows: see the daemon's log for what went wrong, then evaluate again"
    )


def errors_left_out(num_errors: int) -> str:
    return f"{num_errors} {_items(num_errors)} without an outcome left out"


def errors_harmless(num_errors: int) -> str:
    return f"{errors_left_out(num_errors)}, the verdict does not hang on them"


def errors_decide(num_errors: int, verdict: GateVerdict) -> str:
    return (
        f"{errors_left_out(num_errors)}, and the verdict hangs on them: the rest says "
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


def overall(verdict: GateVerdict, suites: tuple[SuiteReport, ...]) -> str:
    """The whole gate in a few sentences: the explanations of the suites that decided it."""
    if not suites:
        return f"inconclusive: {NO_SUITES}."
    deciding = [suite for suite in suites if suite.verdict is verdict]
    details = "".join(f" {suite.explanation}." for suite in deciding)
    if verdict is GateVerdict.PASS:
        targets = sum(suite.role is SuiteRole.TARGET for suite in suites)
        guards = len(suites) - targets
        return (
            f"pass: {targets} target {_suites(targets)} improved, {guards} guard {_suites(guards)} "
            f"held.{details}"
        )
    if verdict is GateVerdict.INCONCLUSIVE and not deciding:
        return f"inconclusive: {NO_TARGET}."
    outcome = "failed" if verdict is GateVerdict.FAIL else "settled nothing"
    share = f"{len(deciding)} of {len(suites)} {_suites(len(suites))}"
    return f"{verdict.value}: {share} {outcome}.{details}"


def _items(count: int) -> str:
    return "item" if count == 1 else "items"


def _suites(count: int) -> str:
    return "suite" if count == 1 else "suites"
