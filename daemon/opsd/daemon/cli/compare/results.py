"""What a comparison found, as numbers: plain arithmetic on finished runs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

NOT_REACHED = math.inf


@dataclass(frozen=True, slots=True)
class Point:
    """A run's adapter after some step, over all target suites."""

    step: int
    generated_tokens: int
    train_s: float
    accuracy: float  # [0, 1]
    n: int  # items


@dataclass(frozen=True, slots=True)
class TeacherCheck:
    """Accuracies of the teacher with its context and of the student without, [0, 1]."""

    accuracy_with: float
    accuracy_without: float
    passed: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """One finished run. What a failed one does not have is None."""

    method: str
    seed: int | None
    run_id: str
    state: str
    verdict: str  # of the gate; "": none
    error: str
    before: float | None  # target accuracy of what serves, [0, 1]
    after: float | None  # of the trained adapter
    guards: dict[str, float]  # suite → after minus before
    generated_tokens: int
    train_s: float | None
    curve: tuple[Point, ...]
    teacher_check: TeacherCheck | None

    @property
    def measured(self) -> bool:
        return self.after is not None


@dataclass(frozen=True, slots=True)
class Summary:
    """All runs of one method. Means are over the measured runs, None without any."""

    method: str
    seeds: tuple[int | None, ...]
    outcomes: dict[str, int]  # the gate's verdict, or how the run ended without one → runs
    before: float | None
    after: float | None
    after_each: tuple[float | None, ...]  # in the order of ``seeds``
    guards: dict[str, float]
    generated_tokens: float | None
    train_s: float | None
    tokens_to_target: float | None  # of the median run; inf: not reached
    seconds_to_target: float | None
    num_reached: int
    num_measured: int
    gain_per_million_tokens: float | None  # of accuracy; None where nothing was generated
    gain_per_minute: float | None  # of training
    teacher_check: TeacherCheck | None  # means; passed: every one


def crossing(points: Iterable[tuple[float, float]], target: float) -> float:
    """The first x at which y reaches ``target``, linear between the (x, y) given in the order of
    x; inf when it never does."""
    before: tuple[float, float] | None = None
    for x, y in points:
        if y >= target:
            if before is None:
                return x
            x_before, y_before = before
            share = (target - y_before) / (y - y_before)
            return min(x, x_before + share * (x - x_before))
        before = (x, y)
    return NOT_REACHED


def pool(points: Iterable[Point]) -> tuple[Point, ...]:
    """One point a step, over its suites weighted by their items, in the order of the steps."""
    by_step: dict[int, list[Point]] = {}
    for point in points:
        by_step.setdefault(point.step, []).append(point)
    return tuple(
        Point(
            step=step,
            generated_tokens=some[0].generated_tokens,
            train_s=some[0].train_s,
            accuracy=weighted_mean((point.accuracy, point.n) for point in some) or 0.0,
            n=sum(point.n for point in some),
        )
        for step, some in sorted(by_step.items())
    )


def weighted_mean(values: Iterable[tuple[float, int]]) -> float | None:
    """Of (value, weight); None without any weight."""
    pairs = list(values)
    total = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / total if total else None


def tokens_to(outcome: Outcome, target: float) -> float:
    return crossing(((p.generated_tokens, p.accuracy) for p in outcome.curve), target)


def seconds_to(outcome: Outcome, target: float) -> float:
    return crossing(((p.train_s, p.accuracy) for p in outcome.curve), target)


def summarise(outcomes: Sequence[Outcome], target: float) -> list[Summary]:
    """One for each method, in the order of their first runs."""
    names = list(dict.fromkeys(outcome.method for outcome in outcomes))
    return [_summary([o for o in outcomes if o.method == name], target) for name in names]


def _summary(outcomes: list[Outcome], target: float) -> Summary:
    measured = [outcome for outcome in outcomes if outcome.measured]
    curves = [outcome for outcome in measured if outcome.curve]
    reached = [tokens_to(outcome, target) for outcome in curves]
    checks = [o.teacher_check for o in outcomes if o.teacher_check is not None]
    guards = dict.fromkeys(name for outcome in measured for name in outcome.guards)
    return Summary(
        method=outcomes[0].method,
        seeds=tuple(outcome.seed for outcome in outcomes),
        outcomes=dict(Counter(outcome.verdict or outcome.state for outcome in outcomes)),
        before=_mean(outcome.before for outcome in measured),
        after=_mean(outcome.after for outcome in measured),
        after_each=tuple(outcome.after for outcome in outcomes),
        guards={
            name: fmean(o.guards[name] for o in measured if name in o.guards) for name in guards
        },
        generated_tokens=_mean(outcome.generated_tokens for outcome in measured),
        train_s=_mean(outcome.train_s for outcome in measured),
        tokens_to_target=median(reached) if reached else None,
        seconds_to_target=median(seconds_to(o, target) for o in curves) if curves else None,
        num_reached=sum(x < NOT_REACHED for x in reached),
        num_measured=len(measured),
        gain_per_million_tokens=_gain_per(measured, lambda o: o.generated_tokens / 1e6),
        gain_per_minute=_gain_per(measured, lambda o: (o.train_s or 0.0) / 60),
        teacher_check=TeacherCheck(
            accuracy_with=fmean(check.accuracy_with for check in checks),
            accuracy_without=fmean(check.accuracy_without for check in checks),
            passed=all(check.passed for check in checks),
        )
        if checks
        else None,
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return fmean(found) if found else None


def _gain_per(outcomes: Sequence[Outcome], cost: Callable[[Outcome], float]) -> float | None:
    """Accuracy gained by all runs together for what they cost together."""
    gain = sum((outcome.after or 0.0) - (outcome.before or 0.0) for outcome in outcomes)
    total = sum(cost(outcome) for outcome in outcomes)
    return gain / total if total else None
