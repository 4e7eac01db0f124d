"""Pending candidates and the canary, on the command line."""

from __future__ import annotations

from typing import Any

from opsd.v1 import admin_pb2 as pb

ADAPTER = "opsd-0123456789abcdef"


def test_nothing_pending(opsd: Any) -> None:
    result = opsd("adapters", "pending")
    assert (result.code, result.out) == (0, "")
    assert "nothing waits" in result.err


def test_pending_shows_votes_and_doubts(opsd: Any, daemon: Any) -> None:
    found = pb.PendingCandidate(
        adapter=daemon.fake.adapter,
        compared_with="base",
        proposer="ann",
        since_unix_s=1.0,
        approvals=1,
        approvals_required=2,
        doubt="compared with base, but another serves",
    )
    found.votes.add(actor="ben", decision="approve", reason="good\x1b[1m", verdict="pass")
    daemon.fake.pending.append(found)
    out = opsd("adapters", "pending").out
    assert "1 of 2" in out
    assert "ben approves (gate then: pass): good" in out
    assert "never" in out
    assert "but another serves" in out
    assert "\x1b" not in out
    (shown,) = opsd("adapters", "pending", "-o", "json").json["candidates"]
    assert shown["votes"][0]["actor"] == "ben"


def test_approve_says_when_another_person_is_needed(opsd: Any, daemon: Any) -> None:
    daemon.fake.approvals = (1, 2)
    result = opsd("adapters", "approve", "opsd-01", "--reason", "r")
    assert result.code == 0
    assert "1 of 2" in result.out
    assert "another person must approve" in result.err


def test_canary_status(opsd: Any) -> None:
    result = opsd("adapters", "canary", "status")
    assert "1 of 3" in result.out
    assert "5 % → 25 % → 100 % (auto)" in result.out
    assert "120 of 200 requests" in result.out
    assert "e-value 12 of 20" in result.out
    assert opsd("adapters", "canary", "status", "-o", "json").json["end"] == "running"


def test_canary_advance_and_abort(opsd: Any, daemon: Any) -> None:
    done = opsd("--actor", "ann", "adapters", "canary", "advance", "--reason", "fine")
    assert done.code == 0
    sent = daemon.fake.last("AdvanceCanary")
    assert (sent.reason, sent.actor) == ("fine", "ann")
    assert opsd("adapters", "canary", "abort", "--reason", "complaints").code == 0
    sent = daemon.fake.last("Rollback")
    assert (sent.reason, sent.canary_only) == ("complaints", True)
    assert opsd("adapters", "canary", "abort", "--reason", " ").code == 2
