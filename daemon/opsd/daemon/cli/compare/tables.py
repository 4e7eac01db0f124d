"""A comparison's results for people and for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from opsd.daemon.cli.compare.ledger import Ledger
from opsd.daemon.cli.compare.results import (
    Outcome,
    Summary,
    TeacherCheck,
    seconds_to,
    tokens_to,
)
from opsd.daemon.cli.output import clean, duration

NUMERIC_COLUMNS = ("tokens", "training", "points per M tokens", "points per minute")


def columns(target: float) -> tuple[str, ...]:
    goal = f"{100 * target:g} %"
    return (
        "method",
        "seeds",
        "gate",
        "accuracy",
        "each seed",
        "guards",
        "tokens",
        "training",
        f"tokens to {goal}",
        f"time to {goal}",
        "points per M tokens",
        "points per minute",
        "teacher check",
    )


def row(summary: Summary) -> tuple[str, ...]:
    """The cells of one method; "-" is what no run of it has."""
    tokens_to_target = _reached(summary, summary.tokens_to_target, _count)
    return (
        summary.method,
        ", ".join(map(str, _given(summary.seeds))) or "-",
        ", ".join(f"{number} {word}" for word, number in summary.outcomes.items()),
        f"{_points(summary.before)} → {_points(summary.after)} %",
        " ".join(map(_points, summary.after_each)),
        ", ".join(f"{name} {100 * d:+.1f}" for name, d in summary.guards.items()) or "-",
        "-" if summary.generated_tokens is None else _count(summary.generated_tokens),
        "-" if summary.train_s is None else duration(summary.train_s),
        tokens_to_target,
        _reached(summary, summary.seconds_to_target, duration),
        _rate(summary.gain_per_million_tokens),
        _rate(summary.gain_per_minute),
        _teacher(summary.teacher_check),
    )


def markdown(ledger: Ledger, summaries: Sequence[Summary]) -> str:
    """``table.md``."""
    names = columns(ledger.target_accuracy)
    lines = [
        f"# Comparison {ledger.id}",
        "",
        *([_cell(ledger.reason), ""] if ledger.reason else []),
        "Accuracy on the target suites before → after, mean of the seeds; guards: after minus "
        "before, in points; tokens are those generated in training; time and tokens to the goal "
        "are of the median seed, between measured points by straight lines; points are points of "
        "accuracy gained.",
        "",
        f"| {' | '.join(names)} |",
        "|" + "|".join("---:" if name in NUMERIC_COLUMNS else "---" for name in names) + "|",
        *(f"| {' | '.join(map(_cell, row(summary)))} |" for summary in summaries),
    ]
    return "\n".join(lines) + "\n"


def as_json(
    ledger: Ledger, outcomes: Sequence[Outcome], summaries: Sequence[Summary]
) -> dict[str, Any]:
    """``results.json``; accuracies are fractions, what was not reached is null."""
    return {
        "id": ledger.id,
        "target_accuracy": ledger.target_accuracy,
        "methods": [_finite(asdict(summary)) for summary in summaries],
        "runs": [
            _finite(
                asdict(outcome)
                | {
                    "tokens_to_target": tokens_to(outcome, ledger.target_accuracy),
                    "seconds_to_target": seconds_to(outcome, ledger.target_accuracy),
                }
            )
            for outcome in outcomes
        ],
    }


def json_text(results: dict[str, Any]) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def curve_csv(outcomes: Sequence[Outcome]) -> str:
    """``curve.csv``: one line for each run and step."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("method", "seed", "run", "step", "generated_tokens", "train_s", "accuracy", "items")
    )
    for outcome in outcomes:
        seed = "" if outcome.seed is None else outcome.seed
        for p in outcome.curve:
            where = (outcome.method, seed, outcome.run_id, p.step)
            writer.writerow((*where, p.generated_tokens, f"{p.train_s:.3f}", p.accuracy, p.n))
    return text.getvalue()


def _given(seeds: Sequence[int | None]) -> list[int]:
    return [seed for seed in seeds if seed is not None]


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _count(number: float) -> str:
    return f"{round(number):,}"


def _rate(gain: float | None) -> str:
    return "-" if gain is None else f"{100 * gain:+.1f}"


def _reached(summary: Summary, value: float | None, form: Any) -> str:
    if value is None:
        return "-"
    text = form(value) if math.isfinite(value) else "not reached"
    if summary.num_reached in (0, summary.num_measured):
        return str(text)
    return f"{text} ({summary.num_reached} of {summary.num_measured} seeds)"


def _teacher(check: TeacherCheck | None) -> str:
    if check is None:
        return "-"
    word = "passed" if check.passed else "FAILED"
    return f"{_points(check.accuracy_without)} → {_points(check.accuracy_with)} %, {word}"


def _cell(text: str) -> str:
    return clean(" ".join(text.split())).replace("|", "\\|")


def _finite(value: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(value, dict):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
