"""What is known of a canary beside the incumbent, metric by metric. Pure but for its memory.

Which observation counts where, and why (docs/explanation/canary.md):

- a request whose adapter was drawn counts in ``Comparison.assigned``, the first of each caller
  only: a sticky caller's later requests were not drawn again;
- a mirrored request counts in ``Comparison.paired``, with the reply that the user got, for errors,
  truncation and length; for these it must not count as drawn as well;
- the mirror runs behind users, so latency is compared between users' replies only;
- latency and length of the canary are divided by the plan's factors first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opsd.daemon.adapters.sequential import Comparison, Ranks, bin_of, mean_e
from opsd.daemon.types.canary import Assignment, CanaryPlan, Metric, Reply

MAX_CALLERS = 200_000
"""Counted of one stream; those who come later are served, but not compared."""

ERRORS_IN_A_ROW = 5
"""Of the canary alone, when it is withdrawn without waiting for proof."""

_REPLY, _LATENCY, _OUTCOME = "reply", "latency", "outcome"
_RANKED = (Metric.LATENCY, Metric.LENGTH)
_STRICT = (Metric.OUTCOME, Metric.ENGINE_ERROR)
"""Any proven loss in these is harm; in the others, one above the margin."""


@dataclass(slots=True)
class StepCounts:
    """Since the step began."""

    requests: int = 0  # that the canary answered for users
    pairs: int = 0
    outcomes: int = 0  # verified, of the canary


@dataclass(slots=True)
class CanaryStatistics:
    """For one event loop."""

    plan: CanaryPlan
    comparisons: dict[Metric, Comparison] = field(default_factory=dict)
    ranks: dict[Metric, Ranks] = field(default_factory=lambda: {m: Ranks() for m in _RANKED})
    counts: StepCounts = field(default_factory=StepCounts)
    harm: str = ""  # the proof, once there was one: wealth that was reached counts
    proven: set[Metric] = field(default_factory=set)
    errors_in_a_row: int = 0  # of the canary, each after an answer of the incumbent
    last_outcome_seq: int = 0
    changed: bool = False  # since the last dump
    callers: dict[str, set[str]] = field(default_factory=dict)
    _new_callers: dict[str, set[str]] = field(default_factory=dict)
    _incumbent_answered: bool = False  # since the canary's last error

    def __post_init__(self) -> None:
        for metric in Metric:
            margin = self.plan.margins[metric.value]
            bound = 0.0 if metric in _STRICT else margin
            self.comparisons.setdefault(metric, Comparison(harm_bound=bound, margin=margin))

    # What is observed

    def replied(self, drawn: Assignment, reply: Reply) -> None:
        """A user's request, answered by the adapter that was drawn for it."""
        self.changed = True
        if drawn.in_canary:
            self.counts.requests += 1
        self._count_errors(reply.engine_error, of_canary=drawn.in_canary)
        if not 0.0 < drawn.share < 1.0:
            return
        if not reply.engine_error and self._first(_LATENCY, drawn.caller):
            self._ranked(Metric.LATENCY, reply.latency_s, drawn)
        if drawn.mirrored or not self._first(_REPLY, drawn.caller):
            return
        self._assigned(Metric.ENGINE_ERROR, float(reply.engine_error), drawn.in_canary, drawn.share)
        if reply.engine_error:
            return
        self._assigned(Metric.TRUNCATED, float(reply.truncated), drawn.in_canary, drawn.share)
        self._ranked(Metric.LENGTH, reply.num_tokens, drawn)

    def mirrored(self, incumbent: Reply, canary: Reply) -> None:
        """One request, answered by both; the user saw the incumbent's."""
        self.changed = True
        self.counts.pairs += 1
        self._count_errors(incumbent.engine_error, of_canary=False)
        self._count_errors(canary.engine_error, of_canary=True)
        difference = float(canary.engine_error) - float(incumbent.engine_error)
        self._paired(Metric.ENGINE_ERROR, difference)
        if canary.engine_error or incumbent.engine_error:
            return
        self._paired(Metric.TRUNCATED, float(canary.truncated) - float(incumbent.truncated))
        shortened = canary.num_tokens / self._factor(Metric.LENGTH)
        longer = bin_of(shortened) - bin_of(incumbent.num_tokens)
        self._paired(Metric.LENGTH, 0.5 * ((longer > 0) - (longer < 0)), largest=0.5)

    def outcome(self, ok: bool, *, in_canary: bool, share: float, caller: str) -> None:
        """A verified outcome of an attempt whose adapter was drawn."""
        self.changed = True
        self.counts.outcomes += in_canary
        if 0.0 < share < 1.0 and self._first(_OUTCOME, caller):
            self._assigned(Metric.OUTCOME, float(not ok), in_canary, share)

    def step_began(self) -> None:
        self.changed = True
        self.counts = StepCounts()

    # What follows

    @property
    def e_value(self) -> float:
        """Against "the canary is no worse in any metric"."""
        return mean_e([comparison.harm.e_value for comparison in self.comparisons.values()])

    def describe(self, metric: Metric) -> str:
        found = self.comparisons[metric]
        parts = []
        if found.num_canary + found.num_incumbent:
            means = (found.mean_canary, found.mean_incumbent)
            canary, incumbent = (
                f"{mean:.3f}" if metric in _RANKED else f"{100 * mean:.1f} %" for mean in means
            )
            of = "mean rank " if metric in _RANKED else ""
            factor = self._factor(metric)
            by = f" (divided by {factor:g} first)" if factor > 1.0 else ""
            parts.append(
                f"{of}{canary} of {found.num_canary}{by} beside {incumbent} of "
                f"{found.num_incumbent}"
            )
        if found.num_pairs:
            parts.append(f"{found.mean_pair:+.3f} over {found.num_pairs} mirrored pairs")
        return f"{metric.value}: {', '.join(parts) or 'nothing observed'}"

    # Memory

    def dump(self) -> str:
        """Canonical JSON; ``load`` reads it. The callers are kept apart."""
        self.changed = False
        counts = self.counts
        return json.dumps(
            {
                "comparisons": {m.value: c.dump() for m, c in self.comparisons.items()},
                "ranks": {
                    metric.value: {str(key): count for key, count in ranks.bins.items()}
                    for metric, ranks in self.ranks.items()
                },
                "counts": [counts.requests, counts.pairs, counts.outcomes],
                "harm": self.harm,
                "proven": sorted(metric.value for metric in self.proven),
                "last_outcome_seq": self.last_outcome_seq,
            },
            sort_keys=True,
        )

    @classmethod
    def load(
        cls, plan: CanaryPlan, text: str, callers: Mapping[str, Iterable[str]]
    ) -> CanaryStatistics:
        kept: dict[str, Any] = json.loads(text)
        streams = {stream: set(names) for stream, names in callers.items()}
        if not kept:
            return cls(plan, callers=streams)
        return cls(
            plan,
            {Metric(name): Comparison.load(c) for name, c in kept["comparisons"].items()},
            {
                Metric(name): Ranks(
                    {int(key): count for key, count in bins.items()}, sum(bins.values())
                )
                for name, bins in kept["ranks"].items()
            },
            StepCounts(*kept["counts"]),
            harm=kept["harm"],
            proven={Metric(name) for name in kept["proven"]},
            last_outcome_seq=kept["last_outcome_seq"],
            callers=streams,
        )

    def take_new_callers(self) -> dict[str, set[str]]:
        """Those counted since the last call."""
        taken, self._new_callers = self._new_callers, {}
        return taken

    def put_back(self, callers: Mapping[str, set[str]]) -> None:
        """They could not be kept yet."""
        self.changed = True
        for stream, names in callers.items():
            self._new_callers.setdefault(stream, set()).update(names)

    def _first(self, stream: str, caller: str) -> bool:
        """Whether the caller counts in the stream now; without a name, each request does."""
        if not caller:
            return True
        known = self.callers.setdefault(stream, set())
        if caller in known or len(known) >= MAX_CALLERS:
            return False
        known.add(caller)
        self._new_callers.setdefault(stream, set()).add(caller)
        return True

    def _count_errors(self, failed: bool, *, of_canary: bool) -> None:
        """An engine that is down fails everybody: that is not the canary's doing. So only errors
        between which the incumbent answered are counted."""
        if not of_canary:
            self._incumbent_answered = not failed
            if failed:
                self.errors_in_a_row = 0
            return
        if not failed:
            self.errors_in_a_row = 0
        elif self._incumbent_answered:
            self.errors_in_a_row += 1
            self._incumbent_answered = False
        if self.errors_in_a_row >= ERRORS_IN_A_ROW:
            self.harm = self.harm or (
                f"{self.errors_in_a_row} requests in a row failed in the engine, while the "
                "incumbent answered in between"
            )

    def _factor(self, metric: Metric) -> float:
        return self.plan.factors.get(metric.value, 1.0)

    def _ranked(self, metric: Metric, value: float, drawn: Assignment) -> None:
        if drawn.in_canary:
            value /= self._factor(metric)
        place = self.ranks[metric].place(value)
        self._assigned(metric, place, drawn.in_canary, drawn.share)

    def _assigned(self, metric: Metric, y: float, in_canary: bool, share: float) -> None:
        self.comparisons[metric].assigned(y, in_canary=in_canary, share=share)
        self._look(metric)

    def _paired(self, metric: Metric, difference: float, *, largest: float = 1.0) -> None:
        self.comparisons[metric].paired(difference, largest=largest)
        self._look(metric)

    def _look(self, metric: Metric) -> None:
        """After every observation: the wealth that counts is the largest that was reached."""
        needed = 1.0 / self.plan.alpha
        if self.comparisons[metric].safe.e_value >= needed:
            self.proven.add(metric)
        if self.harm or self.e_value < needed:
            return
        worst = max(Metric, key=lambda m: self.comparisons[m].harm.e_value)
        self.harm = (
            f"proven worse (e-value {self.e_value:.3g}, {needed:g} are needed at alpha "
            f"{self.plan.alpha:g}): {self.describe(worst)}"
        )
