"""The operators' door: pending candidates, votes and the canary as messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from promotions import A, Bench

from opsd.daemon.admin.decisions import DecisionCalls
from opsd.daemon.config.promotion import PromotionConfig
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.canary import Reply
from opsd.daemon.types.gate import GateVerdict
from opsd.v1 import admin_pb2 as pb


class Call:
    """A gRPC context of somebody's."""

    def __init__(self, actor: str = "") -> None:
        self._actor = actor

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return [("x-opsd-actor", self._actor)] if self._actor else []


def by(actor: str) -> Any:
    return cast(Any, Call(actor))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = open_store(sqlite_url(tmp_path))
    config = PromotionConfig(
        approvals_required=2, steps=(0.05, 0.25, 1.0), mode="manual", shadow_share=0.1
    )
    made = Bench(store, config)
    yield made
    await made.promoter.stop()
    store.close()


async def test_from_pending_through_votes_to_the_end_of_a_canary(bench: Bench) -> None:
    calls = DecisionCalls(bench.store, bench.promoter)
    bench.candidate(A, proposer="ann")
    first = await calls.ApproveAdapter(pb.ApproveAdapterRequest(name=A, reason="r"), by("ben"))
    assert (first.approvals, first.approvals_required, first.incumbent) == (1, 2, "base")
    (pending,) = (await calls.ListPending(pb.ListPendingRequest(), by("ann"))).candidates
    assert (pending.proposer, pending.compared_with, pending.doubt) == ("ann", "base", "")
    assert pending.expires_unix_s == pending.since_unix_s + 604800
    assert [(vote.actor, vote.decision) for vote in pending.votes] == [("ben", "approve")]
    await calls.ApproveAdapter(pb.ApproveAdapterRequest(name=A, reason="r", actor="cyd"), by(""))

    drawn = bench.router.route("r").assignment
    assert drawn is not None
    bench.promoter.canary.replied(drawn, Reply(engine_error=False, num_tokens=3, latency_s=1.0))
    canary = await calls.GetCanary(pb.GetCanaryRequest(), by("ann"))
    assert (canary.adapter, canary.end, canary.step, canary.mode) == (A, "running", 1, "manual")
    assert (list(canary.steps), canary.shadow_share) == ([0.05, 0.25, 1.0], 0.1)
    assert "a person (promotion.mode" in canary.reason
    assert {m.name: m.must_prove for m in canary.metrics} == {
        "outcome": False,
        "engine_error": True,
        "truncated": True,
        "latency": True,
        "length": True,
    }
    step = await calls.AdvanceCanary(pb.AdvanceCanaryRequest(reason="go on"), by("ann"))
    assert step.epoch == 2
    gone = await calls.Rollback(pb.RollbackRequest(reason="no", canary_only=True), by("ann"))
    assert gone.incumbent == "base"
    ended = await calls.GetCanary(pb.GetCanaryRequest(name=A), by("ann"))
    assert (ended.end, ended.step, ended.reason) == ("withdrawn", 2, "no")
    assert sum(m.canary_n + m.incumbent_n for m in ended.metrics) > 0


async def test_who_gives_no_name_decides_nothing(bench: Bench) -> None:
    calls = DecisionCalls(bench.store, bench.promoter)
    bench.candidate(A)
    with pytest.raises(InvalidInputError, match="a decision needs a person's name"):
        await calls.ApproveAdapter(pb.ApproveAdapterRequest(name=A, reason="r"), by(""))


async def test_votes_that_do_not_count_yet_are_told_from_those_that_do(bench: Bench) -> None:
    calls = DecisionCalls(bench.store, bench.promoter)
    bench.candidate(A, GateVerdict.INCONCLUSIVE)
    request = pb.ApproveAdapterRequest(name=A, reason="r", override_inconclusive=True)
    await calls.ApproveAdapter(request, by("ben"))
    (pending,) = (await calls.ListPending(pb.ListPendingRequest(), by("ann"))).candidates
    assert "inconclusive" in pending.doubt
    assert (pending.approvals, pending.votes[0].override) == (1, True)
