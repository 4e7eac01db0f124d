"""How often a canary is withdrawn without reason, and how soon with one: histories by the thousand.

    python bench/canary_sim.py                  # 2,000 histories without difference, and more
    python bench/canary_sim.py --histories 200  # quicker

Each history is a stream of requests, looked at after every single one, by the statistics and with
the defaults that the daemon uses (adapters/canary_statistics.py), at a share of 5 %, then 25 %.
A history without difference that is ever withdrawn is a false alarm: at most alpha of them may be.
"Callers" is the one setting that breaks the assumption on purpose, to show by how much.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from opsd.daemon.adapters.canary_statistics import CanaryStatistics
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.types.canary import Assignment, Metric, Reply


@dataclass(frozen=True)
class Arm:
    """What one adapter's replies are like; rates are fractions, sizes medians."""

    engine_error: float = 0.01
    truncated: float = 0.05
    outcome_failure: float = 0.3
    latency_s: float = 2.0
    num_tokens: float = 300.0


@dataclass(frozen=True)
class Scenario:
    name: str
    canary: Arm = Arm()
    incumbent: Arm = Arm()
    requests: int = 3000
    grows_at: int = 1500  # from 5 % to 25 %; 0: 25 % from the start
    verified: float = 0.3  # share of requests whose outcome becomes known
    mirrored: float = 0.0
    callers: int = 0  # 0: each request is drawn for itself
    spread: float = 0.0  # of the callers' own failure rates, between 0 and this
    noise: float = 0.6  # of latencies and lengths: sigma of the log-normal distribution
    counts_every_reply: bool = False  # as if a sticky caller were drawn anew for each request


SAME = Arm()
SCENARIOS = [
    Scenario("no difference"),
    Scenario("no difference, 30 % mirrored", mirrored=0.3),
    Scenario("no difference, outages for everybody", incumbent=SAME, canary=SAME, requests=3001),
    Scenario("no difference but 20 % slower, all replies alike", Arm(latency_s=2.4), noise=0.0),
    Scenario("no difference, 400 callers, each counted once", callers=400, spread=0.6),
    Scenario(
        "no difference, 40 callers, every reply counted (not what the daemon does)",
        callers=40,
        spread=0.6,
        counts_every_reply=True,
    ),
    Scenario("errors 1 % -> 2 %", canary=Arm(engine_error=0.02), requests=40000),
    Scenario("errors 5 % -> 10 %", Arm(engine_error=0.1), Arm(engine_error=0.05), 20000),
    Scenario("errors 1 % -> 50 %", canary=Arm(engine_error=0.5)),
    Scenario("accuracy 70 % -> 60 %", canary=Arm(outcome_failure=0.4), requests=40000),
    Scenario("accuracy 70 % -> 60 %, at 25 %", Arm(outcome_failure=0.4), SAME, 40000, 0),
    Scenario("twice as slow", canary=Arm(latency_s=4.0)),
    Scenario("twice as long", canary=Arm(num_tokens=600.0)),
    Scenario("truncated 5 % -> 20 %, 30 % mirrored", Arm(truncated=0.2), SAME, 8000, 0, 0.3, 0.3),
]


@dataclass(frozen=True)
class Ended:
    """Requests until harm was proven, and until all margins were; 0: never."""

    harm: int
    safe: int
    canary_requests: int  # until then


def run(scenario: Scenario, seed: int) -> Ended:
    draw = random.Random(seed)
    plan = PromotionConfig(steps=(0.05, 0.25, 1.0)).plan()
    known = CanaryStatistics(plan)
    proofs = set(map(Metric, plan.must_prove))
    places: dict[int, float] = {}  # of callers: below the share is in
    rates: dict[int, float] = {}
    safe = served = 0
    for number in range(1, scenario.requests + 1):
        share = 0.05 if number <= scenario.grows_at else 0.25
        caller = draw.randrange(scenario.callers) if scenario.callers else -1
        if caller < 0:
            drawn = draw.random() < share
        else:
            drawn = places.setdefault(caller, draw.random()) < share
        served += drawn
        arm = scenario.canary if drawn else scenario.incumbent
        if caller >= 0:
            own = rates.setdefault(caller, scenario.spread * draw.random())
            arm = replace(arm, outcome_failure=own, truncated=own)
        if scenario.requests % 2 and number % 500 < 100:
            arm = replace(arm, engine_error=0.5, latency_s=10.0)
        name = "" if caller < 0 or scenario.counts_every_reply else str(caller)
        assignment = Assignment(drawn, share, name, "c", draw.random() < scenario.mirrored)
        reply = replied(arm, draw, scenario.noise)
        known.replied(assignment, reply)
        if assignment.mirrored and not drawn:
            known.mirrored(reply, replied(scenario.canary, draw, scenario.noise))
        if not reply.engine_error and draw.random() < scenario.verified:
            ok = draw.random() >= arm.outcome_failure
            known.outcome(ok, in_canary=drawn, share=share, caller=name)
        if not safe and proofs <= known.proven:
            safe = number
        if known.harm:
            return Ended(number, safe, served)
    return Ended(0, safe, served)


def replied(arm: Arm, draw: random.Random, noise: float) -> Reply:
    if draw.random() < arm.engine_error:
        return Reply(engine_error=True)
    return Reply(
        engine_error=False,
        truncated=draw.random() < arm.truncated,
        num_tokens=max(1, round(arm.num_tokens * draw.lognormvariate(0.0, noise))),
        latency_s=arm.latency_s * draw.lognormvariate(0.0, noise),
    )


def measure(
    scenario: Scenario, histories: int, map_: Callable[..., object]
) -> dict[str, float | int | str]:
    began = time.perf_counter()
    ended = list(map_(partial(run, scenario), range(histories)))  # type: ignore[call-overload]
    harmed = [one for one in ended if one.harm]
    safe = [one.safe for one in ended if one.safe]
    after = sorted(one.harm for one in harmed)
    return {
        "scenario": scenario.name,
        "histories": histories,
        "requests": scenario.requests,
        "withdrawn": len(harmed) / histories,
        "requests_median": after[len(after) // 2] if after else 0,
        "requests_p90": after[int(0.9 * len(after))] if after else 0,
        "of_canary_median": (
            statistics.median(one.canary_requests for one in harmed) if harmed else 0
        ),
        "margins_proven": len(safe) / histories,
        "margins_median": statistics.median(safe) if safe else 0,
        "seconds": round(time.perf_counter() - began, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--histories",
        type=int,
        default=2000,
        help="of the first scenario; a fifth of the others without difference, a twentieth with",
    )
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    bad = 0
    with ProcessPoolExecutor(given.processes) as pool:
        for scenario in SCENARIOS:
            if given.only not in scenario.name:
                continue
            null = scenario.name.startswith("no difference")
            histories = given.histories
            if scenario is not SCENARIOS[0]:
                histories = max(20, histories // (5 if null else 20))
            found = measure(scenario, histories, partial(pool.map, chunksize=5))
            print(json.dumps(found) if given.json else line(found), flush=True)
            if null and not scenario.counts_every_reply:
                bad += found["withdrawn"] > 0.05  # type: ignore[operator]
    return int(bad > 0)


def line(found: dict[str, float | int | str]) -> str:
    return (
        f"{found['scenario']}: withdrawn {100 * float(found['withdrawn']):.1f} % of "
        f"{found['histories']} histories of {found['requests']} requests"
        f" (median after {found['requests_median']}, 90 % by {found['requests_p90']}, "
        f"{found['of_canary_median']:g} of the canary's); all margins proven in "
        f"{100 * float(found['margins_proven']):.0f} % (median after {found['margins_median']:g}); "
        f"{found['seconds']} s"
    )


if __name__ == "__main__":
    sys.exit(main())
