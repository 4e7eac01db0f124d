"""A canary on a real store: its steps, its end, what it counts and what a restart keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from promotions import WHO, A, B, Bench

from opsd.daemon.adapters import canary as canary_module
from opsd.daemon.config.promotion import CompareConfig, PromotionConfig
from opsd.daemon.errors import (
    EngineError,
    InvalidInputError,
    NotFoundError,
    NotReadyError,
    StateError,
)
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.adapters import AdapterState
from opsd.daemon.types.canary import CanaryEnd, Metric, Reply
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.pairs import Attempt
from opsd.daemon.types.runs import RunState

STEPS = PromotionConfig(
    steps=(0.25, 0.5, 1.0),
    step_min_s=0.0,
    step_min_requests=5,
    compare=CompareConfig(must_prove=()),
)
OK = Reply(engine_error=False, num_tokens=10, latency_s=1.0)
BROKEN = Reply(engine_error=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary_module, "POLL_S", 0.01)
    monkeypatch.setattr(canary_module, "SAVE_EVERY_S", 0.0)


@pytest.fixture
async def bench(store: SqlStore) -> AsyncIterator[Bench]:
    made = Bench(store, STEPS)
    yield made
    await made.promoter.stop()


def ask(bench: Bench, number: int, reply: Reply = OK, caller: str = "") -> str:
    """One request, as the door reports it."""
    with bench.router.route(f"request-{number}", "", caller) as route:
        name = route.name
    if route.assignment is not None:
        bench.promoter.canary.replied(route.assignment, reply)
    return name


def ask_canary(bench: Bench, count: int, start: int = 0, reply: Reply = OK) -> int:
    """Requests until the canary answered ``count`` of them with ``reply``; the next number."""
    number = start
    while count:
        snapshot = bench.router.snapshot
        assert snapshot.canary is not None
        with bench.router.route(f"request-{number}") as route:
            pass
        assert route.assignment is not None
        in_canary = route.assignment.in_canary
        bench.promoter.canary.replied(route.assignment, reply if in_canary else OK)
        count -= in_canary
        number += 1
    return number


def share_of(bench: Bench) -> float:
    return bench.router.snapshot.canary_share


async def test_steps_are_taken_by_rule_until_it_serves(bench: Bench) -> None:
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    assert share_of(bench) == 0.25
    assert bench.serves() == "base"
    assert bench.store.get_run(run_id).state is RunState.CANARY
    number = ask_canary(bench, 5)
    await bench.until(lambda: share_of(bench) == 0.5)
    ask_canary(bench, 5, number)
    await bench.until(lambda: bench.serves() == A)
    assert bench.store.get_run(run_id).state is RunState.PROMOTED
    assert bench.store.get_canary(A).end is CanaryEnd.PROMOTED
    actions = [(e.action, e.actor) for e in bench.store.list_audit(limit=3).items]
    assert actions == [
        ("adapter.promote", "opsd"),
        ("adapter.canary_advance", "opsd"),
        ("adapter.canary", "ann"),
    ]


async def test_too_few_requests_hold_it(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    ask_canary(bench, 4)
    await asyncio.sleep(0.1)
    assert share_of(bench) == 0.25
    assert "4 of 5 requests" in bench.promoter.canary.decision().reason


async def test_what_must_be_proven_holds_it(store: SqlStore) -> None:
    compare = CompareConfig(latency_factor=1.0)
    bench = Bench(store, STEPS.model_copy(update={"compare": compare}))
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    ask_canary(bench, 6)
    reason = bench.promoter.canary.decision().reason
    assert "engine_error is not proven to be within 0.02" in reason
    assert "latency is not proven" in reason
    ask_canary(bench, 1500, 1000)
    await bench.until(lambda: share_of(bench) == 0.5)
    await bench.promoter.stop()


async def test_proven_harm_withdraws_it_with_the_numbers(bench: Bench) -> None:
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.promoter.canary.stop()  # nobody looks until enough is known
    row = bench.store.get_incumbent()
    await bench.promoter.canary.follow(row)
    number = 0
    watch = bench.promoter.canary
    assert watch.statistics is not None
    while not watch.statistics.harm:
        with bench.router.route(f"request-{number}") as route:
            pass
        assert route.assignment is not None
        slow = Reply(engine_error=False, num_tokens=10, latency_s=9.0)
        watch.replied(route.assignment, slow if route.assignment.in_canary else OK)
        number += 1
        assert number < 2000
    await bench.until(lambda: bench.router.snapshot.canary is None)
    assert bench.store.get_run(run_id).state is RunState.ROLLED_BACK
    assert bench.store.get_adapter(A).state is AdapterState.RETIRED
    entry = bench.store.list_audit(limit=1).items[0]
    assert (entry.action, entry.actor) == ("adapter.withdraw_canary", "opsd")
    assert "proven worse (e-value" in entry.reason
    assert "latency: mean rank" in entry.reason
    assert '"harm_e_value"' in entry.detail_json
    assert bench.store.get_canary(A).reason == entry.reason


async def test_engine_errors_in_a_row_do_not_wait_for_proof(bench: Bench) -> None:
    """Two callers are two draws: nothing is proven by them, whatever they send."""
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    statistics = bench.promoter.canary.statistics
    assert statistics is not None
    callers: dict[str, str] = {}
    for number in range(100):
        with bench.router.route("r", "", f"caller-{number}") as route:
            callers[route.name] = f"caller-{number}"
    for number in range(5):
        assert statistics.harm == ""
        ask(bench, number, OK, callers["base"])
        ask(bench, number, BROKEN, callers[A])
    assert "5 requests in a row failed" in statistics.harm
    await bench.until(lambda: bench.router.snapshot.canary is None)


async def test_one_that_begins_right_after_another_is_watched_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.candidate(A)
    bench.candidate(B)
    await bench.promoter.approve(A, **WHO)
    monkeypatch.setattr(canary_module, "POLL_S", 0.2)
    ask_canary(bench, 60, reply=BROKEN)
    await bench.until(lambda: bench.router.snapshot.canary is None)
    await bench.promoter.approve(B, **WHO)  # while the task of the first still sleeps
    await asyncio.sleep(0.5)
    assert [task.get_name() for task in asyncio.all_tasks()].count("canary") == 1


async def test_an_engine_that_is_down_for_everybody_is_not_the_canarys_doing(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    for number in range(200):
        ask(bench, number, BROKEN)
    assert bench.promoter.canary.statistics is not None
    assert bench.promoter.canary.statistics.harm == ""
    assert share_of(bench) == 0.25


async def test_by_hand(store: SqlStore) -> None:
    bench = Bench(store, STEPS.model_copy(update={"mode": "manual"}))
    with pytest.raises(StateError, match="no canary"):
        await bench.promoter.advance_canary(**WHO)
    with pytest.raises(NotFoundError):
        await bench.promoter.find_canary()
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    ask_canary(bench, 50)
    await asyncio.sleep(0.1)
    assert share_of(bench) == 0.25
    assert "a person (promotion.mode" in bench.promoter.canary.decision().reason
    await bench.promoter.advance_canary(actor="ben", reason="looks fine")
    assert share_of(bench) == 0.5
    outcome = await bench.promoter.advance_canary(actor="ben", reason="all of it")
    assert outcome.change.incumbent.adapter == A
    assert bench.serves() == A
    with pytest.raises(StateError, match="no canary"):
        await bench.promoter.rollback(**WHO, canary_only=True)
    assert bench.serves() == A
    await bench.promoter.stop()


async def test_a_canary_can_be_withdrawn_by_hand(bench: Bench) -> None:
    run_id = bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.promoter.rollback(**WHO, canary_only=True)
    assert bench.router.snapshot.canary is None
    assert bench.store.get_run(run_id).state is RunState.ROLLED_BACK
    assert bench.store.get_incumbent().adapter == "base"


async def test_too_little_proof_in_time_withdraws_it(store: SqlStore) -> None:
    bench = Bench(store, STEPS.model_copy(update={"canary_max_s": 0.2}))
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.until(lambda: bench.router.snapshot.canary is None)
    assert "too little was proven" in bench.store.list_audit(limit=1).items[0].reason
    await bench.promoter.stop()


async def test_a_restart_goes_on_at_the_same_step_with_what_was_known(store: SqlStore) -> None:
    config = STEPS.model_copy(update={"step_min_requests": 40})
    first = Bench(store, config)
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.advance_canary(**WHO)
    number = ask_canary(first, 20)
    for caller in ("ann", "ben", "cyd"):
        ask(first, 0, caller=caller)
    before = first.promoter.canary.statistics
    assert before is not None
    await first.promoter.stop()
    salt = store.get_canary(A).salt

    second = Bench(store, STEPS)  # what is configured now is for the next canary
    await second.promoter.restore()
    after = second.promoter.canary.statistics
    assert after is not None
    assert after is not before
    assert after.plan == before.plan
    assert after.comparisons == before.comparisons
    assert after.counts.requests == before.counts.requests >= 20
    assert second.router.snapshot.salt == salt
    assert second.router.snapshot.canary_share == 0.5
    counted = after.comparisons[Metric.LENGTH].num_canary
    ask(second, 0, caller="ann")  # counted before
    assert after.comparisons[Metric.LENGTH].num_canary == counted
    ask_canary(second, 40, number)
    await second.until(lambda: second.serves() == A)
    await second.promoter.stop()


async def test_a_canary_whose_files_are_refused_at_the_start_is_withdrawn(store: SqlStore) -> None:
    first = Bench(store, STEPS)
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.stop()
    second = Bench(store, STEPS)
    second.corrupt = {A}
    row = await second.promoter.restore()
    assert (row.adapter, row.canary, second.serves()) == ("base", "", "base")
    assert share_of(second) == 0.0
    ended = store.get_canary(A)
    assert ended.end is CanaryEnd.WITHDRAWN
    entry = store.list_audit(limit=1).items[0]
    assert (entry.action, entry.actor) == ("adapter.withdraw_canary", "opsd")
    assert entry.reason.startswith("not loaded at the daemon's start: ")
    await second.promoter.stop()


async def test_no_step_is_taken_before_the_canary_is_watched(store: SqlStore) -> None:
    first = Bench(store, STEPS)
    first.candidate(A)
    await first.promoter.approve(A, **WHO)
    await first.promoter.stop()
    second = Bench(store, STEPS)
    with pytest.raises(NotReadyError, match="the daemon is starting"):
        await second.promoter.advance_canary(**WHO)
    assert store.get_canary(A).step == 0
    await second.promoter.restore()
    await second.promoter.advance_canary(**WHO)
    assert share_of(second) == 0.5
    await second.promoter.stop()


async def test_a_sticky_caller_counts_once(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    names = {ask(bench, number, caller="ann") for number in range(20)}
    assert len(names) == 1
    statistics = bench.promoter.canary.statistics
    assert statistics is not None
    compared = statistics.comparisons[Metric.ENGINE_ERROR]
    assert compared.num_canary + compared.num_incumbent == 1


async def test_verified_outcomes_of_drawn_attempts_count(store: SqlStore) -> None:
    bench = Bench(
        store, STEPS.model_copy(update={"step_min_outcomes": 1, "step_min_requests": 10_000})
    )
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    began = store.get_canary(A).started_unix_s

    def attempt(id_: str, adapter: str, share: float | None, **fields: Any) -> None:
        fields = {"created_unix_s": began + 1} | fields
        store.add_attempts([Attempt(id_, "r", adapter, "p", "c", 1, canary_share=share, **fields)])

    attempt("canary-1", A, 0.25, caller="aa")
    attempt("canary-2", A, 0.25, caller="aa")  # the same caller
    attempt("base-1", "base", 0.25)
    attempt("named", A, None)  # asked for by name
    attempt("old", "base", 0.25, created_unix_s=began - 1)
    for id_, adapter in (("canary-1", A), ("canary-2", A), ("named", A)):
        bench.outcomes.add(id_, adapter, ok=False)
    bench.outcomes.add("base-1", "base", ok=True)
    bench.outcomes.add("base-1", "base", ok=False, verified=False)
    bench.outcomes.add("old", "base", ok=False)
    bench.outcomes.add("gone", "base", ok=False)
    statistics = bench.promoter.canary.statistics
    assert statistics is not None
    async with asyncio.timeout(5):
        while statistics.last_outcome_seq < 7:  # noqa: ASYNC110 - nobody signals it
            await asyncio.sleep(0.01)
    compared = statistics.comparisons[Metric.OUTCOME]
    assert (compared.num_canary, compared.sum_canary) == (1, 1.0)
    assert (compared.num_incumbent, compared.sum_incumbent) == (1, 0.0)
    assert statistics.counts.outcomes == 2
    assert Metric.OUTCOME.value in statistics.plan.must_prove
    await bench.promoter.stop()


async def test_a_mirror_step_gives_the_canary_no_user(store: SqlStore) -> None:
    bench = Bench(store, STEPS.model_copy(update={"steps": (0.0, 0.5, 1.0), "shadow_share": 1.0}))
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    assert {ask(bench, number) for number in range(50)} == {"base"}
    for _ in range(5):
        bench.promoter.canary.mirrored(A, OK, OK)
    await bench.until(lambda: share_of(bench) == 0.5)
    await bench.promoter.stop()


async def test_one_canary_at_a_time(bench: Bench) -> None:
    bench.candidate(A)
    bench.candidate(B)
    await bench.promoter.approve(A, **WHO)
    with pytest.raises(StateError, match="canary phase"):
        await bench.promoter.approve(B, **WHO)


async def test_another_vote_skips_no_step(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    with pytest.raises(StateError, match="is the canary already: `opsd adapters canary advance`"):
        await bench.promoter.approve(A, actor="ben", reason="me too")
    assert share_of(bench) == 0.25
    assert bench.serves() == "base"


async def test_a_withdrawn_canary_proves_itself_again(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    await bench.promoter.rollback(**WHO, canary_only=True)
    await bench.promoter.approve(A, actor="ben", reason="it was the network")
    assert share_of(bench) == 0.25
    assert bench.serves() == "base"
    await bench.promoter.advance_canary(**WHO)
    await bench.promoter.advance_canary(**WHO)
    assert bench.serves() == A
    await bench.promoter.rollback(**WHO)
    await bench.promoter.approve(A, **WHO)  # it has served: no canary
    assert bench.serves() == A


# Approval


async def test_two_people_are_needed_and_told(store: SqlStore) -> None:
    bench = Bench(store, PromotionConfig(approvals_required=2))
    bench.candidate(A, proposer="ann")
    with pytest.raises(StateError, match="ann triggered the run"):
        await bench.promoter.approve(A, **WHO)
    first = await bench.promoter.approve(A, actor="ben", reason="fine")
    assert (first.counted, first.required, bench.serves()) == (1, 2, "base")
    (pending,) = await bench.promoter.pending()
    assert (pending.proposer, [v.actor for v in pending.votes]) == ("ann", ["ben"])
    await bench.promoter.approve(A, actor="cyd", reason="fine too")
    assert bench.serves() == A
    assert await bench.promoter.pending() == []
    # What served once waits only where somebody wants it back, and never expires.
    await bench.promoter.rollback(actor="ben", reason="no")
    assert await bench.promoter.pending() == []
    await bench.promoter.approve(A, actor="ben", reason="after all")
    (again,) = await bench.promoter.pending()
    assert (again.adapter.name, [v.actor for v in again.votes]) == (A, ["ben"])
    assert again.expires_unix_s == 0
    await bench.promoter.sweep.look()
    assert len(await bench.promoter.pending()) == 1
    await bench.promoter.stop()


@pytest.mark.parametrize("actor", ["", "unknown", "Opsd", " gate", "configuration"])
async def test_a_decision_needs_a_person(bench: Bench, actor: str) -> None:
    bench.candidate(A)
    who: dict[str, Any] = {"actor": actor, "reason": "r"}
    promoter = bench.promoter
    for decision in (
        promoter.approve(A, **who),
        promoter.reject(A, **who),
        promoter.rollback(**who),
        promoter.advance_canary(**who),
    ):
        with pytest.raises(InvalidInputError, match="a decision needs a person"):
            await decision
    assert bench.store.get_incumbent().epoch == 0


async def test_nobody_decides_in_time(store: SqlStore) -> None:
    bench = Bench(store, PromotionConfig(approval_expires_s=0.01))
    run_id = bench.candidate(A)
    await asyncio.sleep(0.05)
    with pytest.raises(StateError, match="expired"):
        await bench.promoter.approve(A, **WHO)
    await bench.promoter.sweep.look()
    assert store.get_adapter(A).state is AdapterState.REJECTED
    assert store.get_run(run_id).state is RunState.REJECTED
    entry = store.list_audit(limit=1).items[0]
    assert (entry.actor, entry.action) == ("opsd", "adapter.reject")
    assert "nobody decided" in entry.reason
    await bench.promoter.stop()


@pytest.mark.parametrize("verdict", list(GateVerdict))
async def test_policy_promotes_only_what_passed(store: SqlStore, verdict: GateVerdict) -> None:
    bench = Bench(store, PromotionConfig(auto_promote_passes=True))
    bench.candidate(A, verdict)
    bench.candidate(B, verdict, incumbent="opsd-other")  # proven against something else
    await bench.promoter.sweep.look()
    assert bench.serves() == (A if verdict is GateVerdict.PASS else "base")
    if verdict is GateVerdict.PASS:
        entry = store.list_audit(limit=1).items[0]
        assert entry.actor == "opsd"
        assert "auto_promote_passes" in entry.reason
    await bench.promoter.stop()


async def test_nothing_is_promoted_by_itself_by_default(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.sweep.look()
    assert bench.serves() == "base"


async def test_an_engine_failure_in_a_route_is_no_statistics_of_its_own(bench: Bench) -> None:
    bench.candidate(A)
    await bench.promoter.approve(A, **WHO)
    with pytest.raises(EngineError), bench.router.route("r", A):
        raise EngineError("died")  # asked for by name: nothing was drawn
    assert bench.promoter.canary.statistics is not None
    assert bench.promoter.canary.statistics.counts.requests == 0
