"""What follows from what is known of a canary. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from opsd.daemon.adapters.canary_statistics import CanaryStatistics
from opsd.daemon.types.canary import CanaryPlan, Metric


class Move(StrEnum):
    HOLD = "hold"
    ADVANCE = "advance"  # to the next share; the last is the promotion
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Decision:
    move: Move
    reason: str  # in words and numbers; of HOLD: what is missing


def decide(
    statistics: CanaryStatistics,
    *,
    step: int,
    started_unix_s: float,
    step_started_unix_s: float,
    now_unix_s: float,
) -> Decision:
    """Harm first, whatever else holds; then a person's or the rule's step."""
    plan = statistics.plan
    if statistics.harm:
        return Decision(Move.WITHDRAW, f"canary at {_percent(plan, step)}: {statistics.harm}")
    missing = _missing(statistics, step, now_unix_s - step_started_unix_s)
    if plan.mode == "manual":
        hint = f"; by rule it would wait: {'; '.join(missing)}" if missing else ""
        return Decision(Move.HOLD, f"a person (promotion.mode is manual){hint}")
    if not missing:
        return Decision(Move.ADVANCE, _proof(statistics, step))
    if plan.max_s and now_unix_s - started_unix_s >= plan.max_s:
        return Decision(
            Move.WITHDRAW,
            f"canary at {_percent(plan, step)}: too little was proven in "
            f"promotion.canary_max_s ({plan.max_s:g} s): {'; '.join(missing)}",
        )
    return Decision(Move.HOLD, "; ".join(missing))


def _missing(statistics: CanaryStatistics, step: int, in_step_s: float) -> list[str]:
    plan, counts = statistics.plan, statistics.counts
    mirror_only = plan.steps[step] == 0.0
    done = counts.pairs if mirror_only else counts.requests
    found = []
    if in_step_s < plan.step_min_s:
        found.append(f"{plan.step_min_s - in_step_s:.0f} s of {plan.step_min_s:g} s are left")
    if done < plan.step_min_requests:
        kind = "mirrored pairs" if mirror_only else "requests"
        found.append(f"{done} of {plan.step_min_requests} {kind}")
    if counts.outcomes < plan.step_min_outcomes and not mirror_only:
        found.append(f"{counts.outcomes} of {plan.step_min_outcomes} verified outcomes")
    for metric in proofs_of_step(plan, step):
        if metric not in statistics.proven:
            e_value = statistics.comparisons[metric].safe.e_value
            found.append(
                f"{metric.value} is not proven to be within {plan.margins[metric.value]:g} "
                f"(e-value {e_value:.3g} of {1 / plan.alpha:g})"
            )
    return found


def proofs_of_step(plan: CanaryPlan, step: int) -> list[Metric]:
    """What must be proven in this step: a mirror shows neither latency nor outcomes."""
    unseen = {Metric.LATENCY, Metric.OUTCOME} if plan.steps[step] == 0.0 else set[Metric]()
    return [metric for metric in map(Metric, plan.must_prove) if metric not in unseen]


def _proof(statistics: CanaryStatistics, step: int) -> str:
    plan = statistics.plan
    shown = [statistics.describe(metric) for metric in proofs_of_step(plan, step)]
    counts = statistics.counts
    return (
        f"canary at {_percent(plan, step)} done with {counts.requests} requests, {counts.pairs} "
        f"mirrored pairs, {counts.outcomes} verified outcomes; no worse beyond the margins: "
        f"{'; '.join(shown) or 'nothing had to be proven'}"
    )


def _percent(plan: CanaryPlan, step: int) -> str:
    return f"{100 * plan.steps[step]:g} %"
