"""What an evaluation was, beside what it measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GateContext:
    """Which gate it is: what a decision may name beside the measured suites."""

    run_id: str
    candidate: str  # adapter name
    incumbent: str  # adapter name or base
    started_unix_s: float
    finished_unix_s: float
