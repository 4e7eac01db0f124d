"""The final table, for people and as JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from opsd.daemon.demo.exam import Answered
from opsd.daemon.demo.screen import verdict_name
from opsd.daemon.demo.story import Evidence
from opsd.daemon.demo.workspace import MARGINS, TARGET
from opsd.daemon.gate.stats import paired_difference_interval, wilson_interval

CONFIDENCE = 0.95


def build(evidence: Evidence) -> dict[str, Any]:
    """The demonstration's result as plain JSON values; accuracies and differences are fractions."""
    traffic = evidence.traffic
    windows = evidence.swap_windows
    run = evidence.run
    return {
        "seed": evidence.seed,
        "wrong_references": evidence.wrong_references,
        "succeeded": succeeded(evidence),
        "suites": {name: _suite(name, evidence) for name in evidence.before},
        "gate": _gate(evidence),
        "requests": {
            "sent": traffic.sent,
            "failed": len(traffic.failed),
            "mixed": len(traffic.mixed),
            "around_swaps": traffic.overlapping(windows),
            "compared": evidence.compared,
            "inconsistent": evidence.inconsistent,
        },
        "swap": {
            "longest_stall_s": traffic.longest_stall_s(windows),
            "changes": [
                {"action": swap.action, "incumbent": swap.incumbent, "swap_s": swap.swap_s}
                for swap in evidence.swaps
            ],
        },
        "pairs": {
            "verified": evidence.submitted.num_verified if evidence.submitted else 0,
            "unverified": evidence.submitted.num_unverified if evidence.submitted else 0,
            "duplicate": evidence.submitted.num_duplicate if evidence.submitted else 0,
            "refused": evidence.submitted.num_refused if evidence.submitted else 0,
        },
        "run": {"id": run.id, "candidate": run.candidate, "steps": run.step} if run else None,
        "generated_tokens": run.generated_tokens if run else 0,
        "stages_s": evidence.stages_s,
        "wall_s": evidence.wall_s,
    }


def succeeded(evidence: Evidence) -> bool:
    """The gate passed and no request failed; for the control: the gate refused."""
    traffic = evidence.traffic
    served_well = not traffic.failed and not traffic.mixed and not evidence.inconsistent
    if evidence.wrong_references:
        return served_well and evidence.gate is not None and not evidence.gate_passed
    return served_well and evidence.gate_passed and bool(evidence.after)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def print_table(result: dict[str, Any], console: Console) -> None:
    kind = "control: another problem's solution" if result["wrong_references"] else "result"
    table = Table(title=f"opsd demo, seed {result['seed']}: {kind}", title_justify="left")
    for column in ("suite", "stratum"):
        table.add_column(column)
    for column in ("n", "before", "after", "difference"):
        table.add_column(column, justify="right")
    for name, suite in result["suites"].items():
        table.add_row(f"{name} ({suite['role']})", "all", *_cells(suite))
        if len(suite["strata"]) > 1:
            for stratum, cells in suite["strata"].items():
                table.add_row("", stratum, *_cells(cells))
        table.add_section()
    console.print(table)
    if any(suite["after_from"] == "gate" for suite in result["suites"].values()):
        console.print("after: the candidate in the gate's evaluation; it was not promoted")
    facts = Table(show_header=False, box=None)
    requests, swap = result["requests"], result["swap"]
    facts.add_row("gate", result["gate"]["verdict"])
    facts.add_row("", result["gate"]["explanation"])
    facts.add_row(
        "requests",
        f"{requests['sent']} sent, {requests['failed']} failed, {requests['mixed']} mixed; "
        f"{requests['around_swaps']} of them open around a swap",
    )
    facts.add_row(
        "answers",
        f"{requests['compared']} compared with a solo run of the adapter they name, "
        f"{requests['inconsistent']} differ",
    )
    if swap["changes"]:
        facts.add_row("longest stall around a swap", f"{swap['longest_stall_s'] * 1000:.0f} ms")
    facts.add_row("tokens generated for training", f"{result['generated_tokens']:,}")
    facts.add_row("pairs", ", ".join(f"{n} {what}" for what, n in result["pairs"].items()))
    for stage, seconds in result["stages_s"].items():
        facts.add_row(f"stage {stage}", f"{seconds:.1f} s")
    facts.add_row("total", f"{result['wall_s']:.1f} s")
    console.print(facts)


def _suite(name: str, evidence: Evidence) -> dict[str, Any]:
    before, after = evidence.before[name], evidence.after.get(name)
    strata = sorted({answer.problem.stratum for answer in before})
    return {
        "role": "target" if name == TARGET else "guard",
        "margin": MARGINS[name],
        # A candidate that was not promoted never answers users: the gate's figures stand for it.
        "after_from": "served" if after else "gate",
        **_compare(before, after),
        **({} if after else _from_gate(name, evidence)),
        "strata": {
            stratum: _compare(
                [a for a in before if a.problem.stratum == stratum],
                [a for a in after if a.problem.stratum == stratum] if after else None,
            )
            for stratum in strata
        },
    }


def _from_gate(name: str, evidence: Evidence) -> dict[str, Any]:
    """What the candidate did in the gate's evaluation, whose difference is the gate's own too."""
    for suite in evidence.gate.suites if evidence.gate else ():
        if suite.name == name:
            solved = round(suite.candidate_accuracy * suite.n)
            interval = wilson_interval(solved, suite.n, confidence=CONFIDENCE)
            return {
                "after": suite.candidate_accuracy,
                "after_ci": [interval.low, interval.high],
                "difference": suite.difference,
                "ci": [suite.ci_low, suite.ci_high],
            }
    return {}


def _compare(before: list[Answered], after: list[Answered] | None) -> dict[str, Any]:
    """Accuracies with Wilson intervals, the paired difference with Tango's."""
    n = len(before)
    result: dict[str, Any] = {"n": n, **_accuracy("before", before)}
    if after is None:
        return {**result, "after": None, "after_ci": None, "difference": None, "ci": None}
    wins = sum(b.solved and not a.solved for a, b in zip(before, after, strict=True))
    losses = sum(a.solved and not b.solved for a, b in zip(before, after, strict=True))
    interval = paired_difference_interval(wins, losses, n, confidence=CONFIDENCE)
    return {
        **result,
        **_accuracy("after", after),
        "difference": (wins - losses) / n,
        "ci": [interval.low, interval.high],
    }


def _accuracy(key: str, answers: list[Answered]) -> dict[str, Any]:
    solved = sum(answer.solved for answer in answers)
    interval = wilson_interval(solved, len(answers), confidence=CONFIDENCE)
    return {
        key: solved / len(answers),
        f"{key}_ci": [interval.low, interval.high],
        f"{key}_tokens_mean": sum(a.completion_tokens for a in answers) / len(answers),
    }


def _gate(evidence: Evidence) -> dict[str, Any]:
    if evidence.gate is None:
        return {"verdict": "none", "explanation": "", "suites": {}}
    return {
        "verdict": verdict_name(evidence.gate.verdict),
        "explanation": evidence.gate.explanation,
        "suites": {
            suite.name: {
                "verdict": verdict_name(suite.verdict),
                "before": suite.incumbent_accuracy,
                "after": suite.candidate_accuracy,
                "difference": suite.difference,
                "ci": [suite.ci_low, suite.ci_high],
                "p_value": suite.p_value,
            }
            for suite in evidence.gate.suites
        },
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    def accuracy(key: str) -> str:
        if row[key] is None:
            return "-"
        low, high = row[f"{key}_ci"]
        return f"{row[key]:.1%} [{100 * low:.1f}, {100 * high:.1f}]".replace("[", r"\[")

    difference = "-"
    if row["difference"] is not None:
        low, high = row["ci"]
        difference = f"{100 * row['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    return str(row["n"]), accuracy("before"), accuracy("after"), difference.replace("[", r"\[")
