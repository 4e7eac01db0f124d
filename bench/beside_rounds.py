"""What users saw in rounds with a run beside them, compared with rounds without; `beside_run.py`.

Quantiles are of all rounds of a kind together: a round alone has too few completions for a 99th
percentile. Beside each ratio stand the ends of its 95 % interval (the pairs drawn anew, 1,000
times) and a control: the same ratio of every other round without the run to the rest of those. It
is what the machine does by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_REDRAWS = 1_000


@dataclass(frozen=True, slots=True)
class Load:
    users: int
    pause_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Seen:
    """By the users of one round; times are seconds."""

    first_token_s: list[float]
    interval_s: list[float]  # seconds a token
    num_tokens: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class Metric:
    of: str  # a field of Seen
    quantile: float
    bound: float  # of the ratio

    @property
    def name(self) -> str:
        return f"{self.of.removesuffix('_s')}_p{self.quantile * 100:.0f}"

    def value(self, rounds: Sequence[Seen]) -> float:
        pooled = np.concatenate([getattr(seen, self.of) for seen in rounds])
        return float(np.quantile(pooled, self.quantile)) if pooled.size else float("nan")

    def ratio(self, rounds: Sequence[Seen], to: Sequence[Seen]) -> float:
        return self.value(rounds) / self.value(to)


METRICS = tuple(
    Metric(of, quantile, bound)
    for of in ("first_token_s", "interval_s")
    for quantile, bound in ((0.5, 1.10), (0.99, 1.25))
)


def completions(rounds: Sequence[Seen]) -> int:
    return sum(len(seen.first_token_s) for seen in rounds)


def rate(rounds: Sequence[Seen]) -> float:
    return sum(seen.num_tokens for seen in rounds) / sum(seen.wall_s for seen in rounds)


def comparison(metric: Metric, alone: Sequence[Seen], beside: Sequence[Seen]) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    drawn = draw.integers(len(alone), size=(_REDRAWS, len(alone)))
    ratios = [metric.ratio([beside[i] for i in d], [alone[i] for i in d]) for d in drawn]
    low, high = np.nanquantile(ratios, (0.025, 0.975))
    return {
        "alone_s": metric.value(alone),
        "beside_s": metric.value(beside),
        "ratio": metric.ratio(beside, alone),
        "interval": [float(low), float(high)],
        "control": metric.ratio(alone[1::2], alone[::2]) if len(alone) > 1 else None,
        "bound": metric.bound,
    }


def print_table(report: dict[str, Any]) -> None:
    print(f"the run alone: {report['run_alone_tokens_per_s']:.0f} tokens/s")
    print(
        f"{'users':>12}  {'metric':<16}{'alone':>10}{'beside':>10}{'ratio':>8}{'95 %':>16}"
        f"{'bound':>8}{'control':>9}"
    )
    for row in report["loads"]:
        load = row["load"]
        name = f"{load['users']}" + (f", pause {load['pause_s']:g} s" if load["pause_s"] else "")
        for metric, cell in row["metrics"].items():
            low, high = cell["interval"]
            control = "-" if cell["control"] is None else f"{cell['control']:.3f}"
            print(
                f"{name:>12}  {metric:<16}{cell['alone_s'] * 1e3:>8.1f}ms"
                f"{cell['beside_s'] * 1e3:>8.1f}ms{cell['ratio']:>8.3f}"
                f"{f'{low:.3f} to {high:.3f}':>16}{cell['bound']:>8.2f}{control:>9}"
            )
        kept = all(cell["ratio"] <= cell["bound"] for cell in row["metrics"].values())
        print(
            f"{name:>12}  {row['completions']['beside']} completions; the run got "
            f"{row['run_tokens_per_s']:.0f} tokens/s beside "
            f"{row['users_tokens_per_s']['beside']:.0f} of the users'; "
            f"{'within' if kept else 'NOT within'} 10 % at the median and 25 % at p99"
        )
