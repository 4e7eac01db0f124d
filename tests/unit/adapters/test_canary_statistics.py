"""Which observation counts where, and what is kept of it."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from opsd.daemon.adapters import canary_statistics
from opsd.daemon.adapters.canary_rules import Move, decide
from opsd.daemon.adapters.canary_statistics import CanaryStatistics
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.types.canary import Assignment, Metric, Reply

PLAN = PromotionConfig(steps=(0.25, 1.0)).plan()
OK = Reply(engine_error=False, num_tokens=10, latency_s=1.0)
LONG = Reply(engine_error=False, truncated=True, num_tokens=500, latency_s=9.0)
BROKEN = Reply(engine_error=True)


def drawn(
    in_canary: bool, *, caller: str = "", mirrored: bool = False, share: float = 0.25
) -> Assignment:
    return Assignment(in_canary, share, caller, "c", mirrored)


def counts(known: CanaryStatistics, metric: Metric) -> tuple[int, int, int]:
    compared = known.comparisons[metric]
    return compared.num_canary, compared.num_incumbent, compared.num_pairs


def test_a_mirrored_request_counts_in_its_pair_only_but_for_latency() -> None:
    known = CanaryStatistics(PLAN)
    known.replied(drawn(False, mirrored=True), OK)
    known.mirrored(OK, LONG)
    for metric in (Metric.ENGINE_ERROR, Metric.TRUNCATED, Metric.LENGTH):
        assert counts(known, metric) == (0, 0, 1)
    assert counts(known, Metric.LATENCY) == (0, 1, 0)
    assert known.comparisons[Metric.LENGTH].mean_pair == 0.5
    assert known.comparisons[Metric.TRUNCATED].mean_pair == 1.0


def test_an_error_has_no_length_and_no_latency() -> None:
    known = CanaryStatistics(PLAN)
    known.replied(drawn(True), BROKEN)
    known.mirrored(OK, BROKEN)
    assert counts(known, Metric.ENGINE_ERROR) == (1, 0, 1)
    for metric in (Metric.TRUNCATED, Metric.LENGTH, Metric.LATENCY):
        assert counts(known, metric) == (0, 0, 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_nothing_is_drawn_nothing_is_compared(share: float) -> None:
    known = CanaryStatistics(PLAN)
    known.replied(drawn(share == 1.0, share=share), OK)
    assert counts(known, Metric.LENGTH) == (0, 0, 0)


@pytest.mark.parametrize(
    ("slower", "longer", "factors", "harm"),
    [
        (1.2, 1.0, PLAN.factors, ""),
        (1.2, 1.0, {}, "latency"),
        (1.6, 1.0, PLAN.factors, "latency: mean rank"),
        (1.0, 1.08, PLAN.factors, ""),
        (1.0, 1.08, {}, "length"),
        (1.0, 1.5, PLAN.factors, "length"),
    ],
)
def test_where_all_replies_are_alike_a_little_more_of_each_is_no_harm(
    slower: float, longer: float, factors: dict[str, float], harm: str
) -> None:
    """Any difference, however small, is one in every pair then."""
    known = CanaryStatistics(replace(PLAN, factors=factors))
    random = Random(1)
    usual = Reply(engine_error=False, num_tokens=114, latency_s=1.135)  # at the end of their bins
    more = replace(
        usual,
        num_tokens=round(longer * usual.num_tokens),
        latency_s=slower * usual.latency_s,
    )
    for _ in range(3000):
        in_canary = random.random() < 0.25
        known.replied(drawn(in_canary), more if in_canary else usual)
    assert harm in known.harm
    assert bool(known.harm) == bool(harm)


@pytest.mark.parametrize(("num_tokens", "mean"), [(90, -0.5), (108, 0.0), (150, 0.5)])
def test_mirrored_lengths_are_divided_too(num_tokens: int, mean: float) -> None:
    plan = replace(PLAN, factors={Metric.LENGTH.value: 1.08})
    known = CanaryStatistics(plan)
    known.mirrored(replace(OK, num_tokens=100), replace(OK, num_tokens=num_tokens))
    assert known.comparisons[Metric.LENGTH].mean_pair == mean


def test_each_caller_counts_once_in_each_stream() -> None:
    known = CanaryStatistics(PLAN)
    for _ in range(3):
        known.replied(drawn(True, caller="aa"), OK)
        known.outcome(True, in_canary=True, share=0.25, caller="aa")
        known.replied(drawn(False), OK)  # no name: each request is a draw
    assert counts(known, Metric.LENGTH) == (1, 3, 0)
    assert counts(known, Metric.OUTCOME) == (1, 0, 0)
    assert known.counts.requests == known.counts.outcomes == 3
    assert known.take_new_callers() == {"latency": {"aa"}, "reply": {"aa"}, "outcome": {"aa"}}
    assert known.take_new_callers() == {}
    known.put_back({"reply": {"aa"}})
    assert known.take_new_callers() == {"reply": {"aa"}}


def test_callers_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_statistics, "MAX_CALLERS", 2)
    known = CanaryStatistics(PLAN)
    for name in ("aa", "bb", "cc"):
        known.replied(drawn(True, caller=name), OK)
    assert counts(known, Metric.LENGTH) == (2, 0, 0)


def test_what_was_kept_is_what_was_known() -> None:
    known = CanaryStatistics(PLAN)
    for number in range(50):
        known.replied(drawn(number % 4 == 0, caller=f"{number}"), LONG if number % 3 else OK)
        known.mirrored(OK, LONG if number % 7 == 0 else OK)
    callers = known.take_new_callers()
    known.last_outcome_seq = 12
    again = CanaryStatistics.load(PLAN, known.dump(), callers)
    assert again.comparisons == known.comparisons
    assert again.ranks == known.ranks
    assert (again.counts, again.harm, again.proven) == (known.counts, known.harm, known.proven)
    assert again.last_outcome_seq == 12
    assert again.dump() == known.dump()
    assert CanaryStatistics.load(PLAN, "{}", {}).e_value == pytest.approx(1.0)


def test_a_proof_of_harm_stands_though_wealth_falls_again() -> None:
    known = CanaryStatistics(PLAN)
    while not known.harm:
        known.mirrored(OK, BROKEN)
        known.mirrored(OK, OK)  # so that it is no row of errors
    proof = known.harm
    for _ in range(20):
        known.mirrored(BROKEN, OK)
    assert known.e_value < 20
    assert known.harm == proof
    decision = decide(known, step=0, started_unix_s=0.0, step_started_unix_s=0.0, now_unix_s=1e9)
    assert decision.move is Move.WITHDRAW
    assert "engine_error" in decision.reason


def test_errors_of_everybody_are_not_the_canarys() -> None:
    known = CanaryStatistics(PLAN)
    for _ in range(50):
        known.replied(drawn(True), BROKEN)  # the incumbent has no request in between
    assert "in a row" not in known.harm
    known = CanaryStatistics(PLAN)
    for _ in range(20):
        known.replied(drawn(False), BROKEN)
        known.replied(drawn(True), BROKEN)
    assert known.harm == ""
