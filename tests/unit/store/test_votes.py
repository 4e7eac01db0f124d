"""A vote is cast once, decides in its own transaction, and one decision wins."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from opsd.daemon.errors import ConcurrentChangeError, OpsdError, StateError
from opsd.daemon.store.api import Voted
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.approval import Vote, VoteDecision, VotePolicy
from opsd.daemon.types.canary import CanaryEnd

PLAN = (0.05, '{"steps": [0.05, 1.0]}')


def approve(
    store: SqlStore,
    name: str,
    actor: str,
    *,
    required: int = 1,
    override: bool = False,
    needs_override: bool = False,
    proposer: str = "",
    expires: float = 0.0,
    epoch: int | None = None,
    plan: tuple[float, str] | None = None,
) -> Voted:
    return store.vote_to_approve(
        name,
        actor=actor,
        reason=f"{actor} thinks so",
        override=override,
        verdict="pass",
        policy=VotePolicy(required, proposer, needs_override, expires),
        expected_epoch=store.get_incumbent().epoch if epoch is None else epoch,
        canary_plan=plan,
    )


@pytest.fixture
def candidate(store: SqlStore, make_adapter: Callable[[], Adapter]) -> str:
    return store.add_adapter(make_adapter()).name


def test_one_vote_decides_where_one_is_required(store: SqlStore, candidate: str) -> None:
    voted = approve(store, candidate, "ana")
    assert voted.decided
    assert store.get_incumbent().adapter == candidate
    entry = store.list_audit(limit=1).items[0]
    assert entry.action == "adapter.promote"
    (shown,) = json.loads(entry.detail_json)["approvals"]
    assert (shown["actor"], shown["verdict"], shown["override"]) == ("ana", "pass", False)


def test_two_votes_of_two_people(store: SqlStore, candidate: str) -> None:
    first = approve(store, candidate, "ana", required=2)
    assert (first.counted, first.required, first.decided) == (1, 2, False)
    assert store.get_incumbent().epoch == 0
    assert store.list_audit(limit=1).items[0].action == "adapter.vote"
    second = approve(store, candidate, "ben", required=2, plan=PLAN)
    assert second.decided
    row = store.get_incumbent()
    assert (row.canary, row.canary_share) == (candidate, 0.05)
    canary = store.get_canary(candidate)
    assert (canary.plan_json, canary.step, canary.end) == (PLAN[1], 0, CanaryEnd.RUNNING)
    votes = store.list_votes(candidate)
    assert [(v.actor, v.deciding) for v in votes] == [("ana", False), ("ben", True)]


@pytest.mark.parametrize("again", ["ana", " Ana", "ANA", "\uff41na"])
def test_nobody_votes_twice_or_changes_a_vote(store: SqlStore, candidate: str, again: str) -> None:
    approve(store, candidate, "ana", required=2)
    with pytest.raises(StateError, match="a vote is final"):
        approve(store, candidate, again, required=2)
    with pytest.raises(StateError, match="a vote is final"):
        store.vote_to_reject(candidate, actor=again, reason="changed my mind", verdict="pass")
    assert store.get_adapter(candidate).state is AdapterState.CANDIDATE
    assert len(store.list_votes(candidate)) == 1


def test_who_proposed_it_is_not_one_of_the_two(store: SqlStore, candidate: str) -> None:
    with pytest.raises(StateError, match="triggered the run"):
        approve(store, candidate, "Ana", required=2, proposer="ana")
    assert store.list_votes(candidate) == []
    assert approve(store, candidate, "ana", required=1, proposer="ana").decided


def test_one_reject_is_enough_and_final(store: SqlStore, candidate: str) -> None:
    approve(store, candidate, "ana", required=2)
    change = store.vote_to_reject(candidate, actor="ben", reason="no", verdict="pass")
    assert change.adapter is not None
    assert change.adapter.state is AdapterState.REJECTED
    with pytest.raises(StateError, match="rejected"):
        approve(store, candidate, "cyd", required=2)
    assert store.list_votes(candidate)[-1].decision is VoteDecision.REJECT


def test_an_override_needs_every_approver_to_override(store: SqlStore, candidate: str) -> None:
    approve(store, candidate, "ana", required=2)
    voted = approve(store, candidate, "ben", required=2, override=True, needs_override=True)
    assert (voted.counted, voted.decided) == (1, False)
    assert approve(store, candidate, "cyd", required=2, override=True, needs_override=True).decided
    (entry,) = (e for e in store.list_audit(limit=9).items if e.action == "adapter.promote")
    names = [shown["actor"] for shown in json.loads(entry.detail_json)["approvals"]]
    assert names == ["ben", "cyd"]


def test_a_retired_adapter_gets_a_new_ballot(
    store: SqlStore, make_adapter: Callable[[], Adapter], candidate: str
) -> None:
    approve(store, candidate, "ana")
    other = store.add_adapter(make_adapter()).name
    approve(store, other, "ana")
    assert approve(store, candidate, "ana").decided
    assert [vote.ballot for vote in store.list_votes(candidate)] == [0, 1]
    assert store.open_votes(candidate) == []


def test_what_has_expired_is_not_approved(store: SqlStore, candidate: str, clock) -> None:
    with pytest.raises(StateError, match="expired"):
        approve(store, candidate, "ana", expires=clock.now)
    with pytest.raises(StateError, match="expires in"):
        store.expire_candidate(
            candidate, actor="opsd", reason="late", verdict="pass", expires_unix_s=clock.now + 99
        )
    store.expire_candidate(
        candidate, actor="opsd", reason="late", verdict="pass", expires_unix_s=clock.now
    )
    assert store.get_adapter(candidate).state is AdapterState.REJECTED


def test_a_stale_epoch_counts_for_nothing(store: SqlStore, candidate: str) -> None:
    with pytest.raises(ConcurrentChangeError):
        approve(store, candidate, "ana", epoch=7)
    assert store.list_votes(candidate) == []


# Races: two threads on SQLite, two daemons' stores on PostgreSQL.


@pytest.fixture
def two_stores(store_url: str) -> Iterator[tuple[SqlStore, SqlStore]]:
    first = open_store(store_url, exclusive=False)
    second = open_store(store_url, exclusive=False) if "postgresql" in store_url else first
    yield first, second
    first.close()
    if second is not first:
        second.close()


def race(*calls: Callable[[], object]) -> list[object]:
    """What each returned or raised."""
    barrier = threading.Barrier(len(calls))

    def run(call: Callable[[], object]) -> object:
        barrier.wait()
        try:
            return call()
        except OpsdError as error:
            return error

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(run, calls))


def errors(results: list[object]) -> list[OpsdError]:
    return [result for result in results if isinstance(result, OpsdError)]


ROUNDS = 6


def test_of_two_approvals_at_once_each_counts_once(
    two_stores: tuple[SqlStore, SqlStore], make_adapter: Callable[[], Adapter]
) -> None:
    one, two = two_stores
    for number in range(ROUNDS):
        name = one.add_adapter(make_adapter()).name
        epoch = one.get_incumbent().epoch
        results = race(
            partial(approve, one, name, "ana", required=2, epoch=epoch),
            partial(approve, two, name, "ben", required=2, epoch=epoch),
        )
        assert errors(results) == []
        assert sorted(voted.counted for voted in results) == [1, 2]  # type: ignore[attr-defined]
        row = one.get_incumbent()
        assert (row.adapter, row.epoch) == (name, number + 1)
        assert [vote.deciding for vote in one.list_votes(name)] == [False, True]


def test_the_same_person_twice_at_once_votes_once(
    two_stores: tuple[SqlStore, SqlStore], make_adapter: Callable[[], Adapter]
) -> None:
    one, two = two_stores
    for _ in range(ROUNDS):
        name = one.add_adapter(make_adapter()).name
        results = race(
            partial(approve, one, name, "ana", required=2, epoch=0),
            partial(approve, two, name, "ana", required=2, epoch=0),
        )
        assert len(errors(results)) == 1
        assert [vote.actor for vote in one.list_votes(name)] == ["ana"]
        assert one.get_incumbent().epoch == 0


@pytest.mark.parametrize("against", ["reject", "expire"])
def test_approval_against_an_end(
    two_stores: tuple[SqlStore, SqlStore], make_adapter: Callable[[], Adapter], against: str
) -> None:
    one, two = two_stores
    for _ in range(ROUNDS):
        name = one.add_adapter(make_adapter()).name
        before = one.get_incumbent()

        def end(name: str = name) -> object:
            if against == "reject":
                return two.vote_to_reject(name, actor="ben", reason="no", verdict="pass")
            return two.expire_candidate(
                name, actor="opsd", reason="late", verdict="pass", expires_unix_s=1.0
            )

        results = race(partial(approve, one, name, "ana", epoch=before.epoch), end)
        (lost,) = errors(results)
        assert isinstance(lost, StateError)
        (deciding,) = (vote for vote in one.list_votes(name) if vote.deciding)
        serves = one.get_incumbent().adapter == name
        assert serves is (deciding.decision is VoteDecision.APPROVE)
        state = one.get_adapter(name).state
        assert state is (AdapterState.INCUMBENT if serves else AdapterState.REJECTED)
        assert_one_decision(one.list_votes(name))


def assert_one_decision(votes: list[Vote]) -> None:
    assert sum(vote.deciding for vote in votes) == 1
