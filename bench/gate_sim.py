"""How often the gate errs: simulated histories through the code that decides.

Prints five figures, each with its Wilson interval and what it must reach:

- histories of gates without a true difference, on the same items: how many ever promote;
- a true gain on the target: how many pass at the first gate, by how often the arms disagree;
- a true loss on a guard, and epistemic markers halved: how many are stopped;
- an adapter against itself: how many pass.

Items have a probability of being solved of their own; ``--disagree`` is the share of items on which
two answers of equal quality differ. Nothing is fitted to the gate: the arms are coin throws.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from opsd.daemon.gate.decision import decide, verdict_of
from opsd.daemon.gate.evidence import of_counts
from opsd.daemon.gate.inputs import GateInputs
from opsd.daemon.gate.multiple import spent_alpha
from opsd.daemon.gate.rules import GateRules
from opsd.daemon.gate.stats import wilson_interval
from opsd.daemon.types.gate import GateReport, GateVerdict, SuiteRole
from opsd.daemon.types.measured import AnswerRecord, Arm, ItemMeasured, SuiteMeasured

Bools = NDArray[np.bool_]
Generator = np.random.Generator

RULES = GateRules()
MARGIN = 0.03
WORDS = 80
MARKERS_A_WORD = 0.01


@dataclass(frozen=True, slots=True)
class Arms:
    """One suite's answers: (n,) solved by each arm, (n,) markers of each."""

    incumbent: Bools
    candidate: Bools
    incumbent_markers: NDArray[np.int64]
    candidate_markers: NDArray[np.int64]


def chances(generator: Generator, n: int, accuracy: float, disagree: float) -> NDArray[np.float64]:
    """Each item's probability of being solved: Beta with this mean, and as wide as makes two
    independent answers differ with probability ``disagree``."""
    spread = accuracy * (1.0 - accuracy)
    # E[2 p (1 - p)] = 2 m (1 - m) s / (s + 1) for Beta(m s, (1 - m) s).
    size = disagree / (2.0 * spread - disagree)
    return generator.beta(accuracy * size, (1.0 - accuracy) * size, size=n)


def shifted(generator: Generator, solved: Bools, p: NDArray[np.float64], gain: float) -> Bools:
    """A second answer to each item, with this true difference of accuracy."""
    again = generator.random(len(p)) < p
    if gain > 0.0:
        share = gain / float(np.mean(1.0 - p))
        return again | (generator.random(len(p)) < share)
    share = -gain / float(np.mean(p))
    return again & ~(generator.random(len(p)) < share)


def arms(
    generator: Generator,
    *,
    n: int,
    accuracy: float,
    disagree: float,
    gain: float = 0.0,
    markers: float = 1.0,
) -> Arms:
    p = chances(generator, n, accuracy, disagree)
    incumbent = generator.random(n) < p
    # Some answers hesitate often and most never: more spread than a Poisson count has.
    mood = generator.gamma(0.5, 2.0, size=n)
    rate = WORDS * MARKERS_A_WORD * mood
    return Arms(
        incumbent,
        shifted(generator, incumbent, p, gain),
        generator.poisson(rate),
        generator.poisson(rate * markers),
    )


def suite(name: str, role: SuiteRole, data: Arms, *, num_uses: int = 0) -> SuiteMeasured:
    def answer(solved: bool, markers: int) -> tuple[AnswerRecord, ...]:
        return (AnswerRecord(bool(solved), tokens=120, words=WORDS, markers=int(markers)),)

    rows = zip(
        *(data.incumbent, data.candidate, data.incumbent_markers, data.candidate_markers),
        strict=True,
    )
    return SuiteMeasured(
        name=name,
        version="1",
        sha256="0" * 64,
        role=role,
        margin=0.0 if role is SuiteRole.TARGET else MARGIN,
        items=tuple(
            ItemMeasured(
                str(number),
                {
                    Arm.INCUMBENT: answer(before, markers_before),
                    Arm.CANDIDATE: answer(after, markers_after),
                },
            )
            for number, (before, after, markers_before, markers_after) in enumerate(rows)
        ),
        num_uses=num_uses,
    )


def gate(*suites: SuiteMeasured) -> GateReport:
    return decide(GateInputs("run", "candidate", "incumbent", RULES, suites, 0.0, 0.0))


def whole_gate(
    generator: Generator,
    options: argparse.Namespace,
    *,
    target_gain: float = 0.0,
    guard_gain: float = 0.0,
    markers: float = 1.0,
    disagree: float | None = None,
    num_uses: int = 0,
) -> GateReport:
    target = arms(
        generator,
        n=options.items,
        accuracy=0.5,
        disagree=disagree or options.disagree,
        gain=target_gain,
        markers=markers,
    )
    guard = arms(
        generator,
        n=options.items,
        accuracy=0.9,
        disagree=options.guard_disagree,
        gain=guard_gain,
        markers=markers,
    )
    return gate(
        suite("target", SuiteRole.TARGET, target, num_uses=num_uses),
        suite("guard", SuiteRole.GUARD, guard),
    )


def ever_promotes(generator: Generator, options: argparse.Namespace, gates: int) -> bool:
    """One history: the same items and the same incumbent's answers, one worthless candidate after
    another. The guard is asked only where the target passed: it can only stop what would pass."""
    p = chances(generator, options.items, 0.5, options.disagree)
    incumbent = generator.random(options.items) < p
    for number in range(1, gates + 1):
        candidate = generator.random(options.items) < p
        evidence = of_counts(
            int(np.sum(candidate & ~incumbent)),
            int(np.sum(incumbent & ~candidate)),
            options.items,
        )
        verdict = verdict_of(
            *(SuiteRole.TARGET, 0.0, evidence),
            alpha=spent_alpha(RULES.alpha, number),
            one_sided=RULES.one_sided,
        )
        if verdict is GateVerdict.PASS:
            return True
    return False


def against_itself(generator: Generator, options: argparse.Namespace) -> GateReport:
    data = arms(generator, n=options.items, accuracy=0.5, disagree=options.disagree)
    same = Arms(data.incumbent, data.incumbent, data.incumbent_markers, data.incumbent_markers)
    return gate(suite("target", SuiteRole.TARGET, same), suite("guard", SuiteRole.GUARD, same))


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    hits: int
    of: int
    must: str
    reached: bool

    def line(self) -> str:
        interval = wilson_interval(self.hits, self.of, confidence=0.95)
        reach = f"[{100 * interval.low:.2f}, {100 * interval.high:.2f}]"
        share = f"{100 * self.hits / self.of:6.2f} % {reach}"
        mark = "reached" if self.reached else "MISSED"
        return f"{self.name:<62} {self.hits:>5} of {self.of:<5} {share:<24} {self.must}: {mark}"


def count(of: int, one: Callable[[], bool]) -> int:
    return sum(one() for _ in range(of))


def figures(options: argparse.Namespace) -> Iterator[Figure]:
    generator = np.random.default_rng(options.seed)

    def passes(gain: float, guard: float = 0.0, markers: float = 1.0) -> Callable[[], bool]:
        def one() -> bool:
            report = whole_gate(
                generator, options, target_gain=gain, guard_gain=guard, markers=markers
            )
            return report.verdict is GateVerdict.PASS

        return one

    hits = count(options.histories, lambda: ever_promotes(generator, options, options.gates))
    yield Figure(
        f"no difference, {options.gates} gates on the same items: promotes",
        hits,
        options.histories,
        "at most 5 %",
        hits <= 0.05 * options.histories,
    )
    hits = count(options.trials, passes(0.05))
    yield Figure(
        f"+5 points, first gate, arms disagree on {options.disagree:.0%}: passes",
        hits,
        options.trials,
        "at least 80 %",
        hits >= 0.8 * options.trials,
    )
    hits = options.trials - count(options.trials, passes(0.05, guard=-0.05))
    yield Figure(
        f"+5 points, and -5 on a guard with margin {100 * MARGIN:.0f}: stopped",
        hits,
        options.trials,
        "at least 95 %",
        hits >= 0.95 * options.trials,
    )
    hits = options.trials - count(options.trials, passes(0.05, markers=0.5))
    yield Figure(
        "+5 points, epistemic markers halved: stopped",
        hits,
        options.trials,
        "at least 95 %",
        hits >= 0.95 * options.trials,
    )
    trials = max(1, options.trials // 4)
    hits = count(trials, lambda: against_itself(generator, options).verdict is GateVerdict.PASS)
    yield Figure("an adapter against itself: passes", hits, trials, "never", hits == 0)


def power_table(options: argparse.Namespace) -> Iterator[str]:
    """Beside the figures: what disagreement and earlier gates cost."""
    generator = np.random.default_rng(options.seed + 1)
    yield "+5 points: share that passes, by how often the arms disagree and the gate's number"
    yield f"{'disagree':>10} " + " ".join(f"gate {number:>2}" for number in (1, 4, 12, 24))
    for disagree in (0.1, 0.2, 0.3, 0.4):
        shares = []
        for number in (1, 4, 12, 24):
            hits = count(
                options.table_trials,
                lambda d=disagree, k=number: (  # type: ignore[misc]
                    whole_gate(
                        generator, options, target_gain=0.05, disagree=d, num_uses=k - 1
                    ).verdict
                    is GateVerdict.PASS
                ),
            )
            shares.append(f"{100 * hits / options.table_trials:5.0f} %")
        yield f"{disagree:>10.0%} " + " ".join(shares)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--histories", type=int, default=2000)
    parser.add_argument("--gates", type=int, default=24, help="in one history")
    parser.add_argument("--trials", type=int, default=400, help="of each other figure")
    parser.add_argument("--table-trials", type=int, default=0, help="of a cell of the power table")
    parser.add_argument("--items", type=int, default=1000, help="of each suite")
    parser.add_argument("--disagree", type=float, default=0.2, help="on the target")
    parser.add_argument("--guard-disagree", type=float, default=0.08)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = []
    for figure in figures(options):
        found.append(figure)
        print(figure.line(), flush=True)
    if options.table_trials:
        for line in power_table(options):
            print(line, flush=True)
    if options.json:
        body = {
            figure.name: {"hits": figure.hits, "of": figure.of, "reached": figure.reached}
            for figure in found
        }
        options.json.write_text(json.dumps(body, indent=2) + "\n", encoding="utf-8")
    return 0 if all(figure.reached for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
