"""SIGKILL around a change of what serves: old or new, never between."""

from __future__ import annotations

import subprocess
import sys
from os import environ
from uuid import uuid4

import pytest

from opsd.daemon.store.failpoints import VARIABLE
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.approval import VotePolicy
from opsd.daemon.types.runs import Run, RunState, TriggerKind

CALLS = {
    "promote": "s.promote({name!r}, expected_epoch={epoch}, actor='a', reason='r')",
    "canary": "s.start_canary({name!r}, share=0.5, expected_epoch={epoch}, actor='a', reason='r')",
    "rollback": "s.rollback(expected_epoch={epoch}, actor='a', reason='r')",
    "reject": "s.reject({name!r}, actor='a', reason='r')",
}
VOTES = {
    # The last vote of two decides: the vote and the promotion are one transaction.
    "promote": "s.vote_to_approve({name!r}, actor='ben', reason='r', override=False, "
    "verdict='pass', policy=VotePolicy(2), expected_epoch=0, canary_plan=None)",
    "reject": "s.vote_to_reject({name!r}, actor='ben', reason='r', verdict='pass')",
}
PROGRAM = "from opsd.daemon.types.approval import VotePolicy\n"
PROGRAM += "from opsd.daemon.store.sql import open_store\ns = open_store({url!r})\n{call}\n"


def add_candidate(store: SqlStore) -> Adapter:
    run = store.create_run(
        Run(str(uuid4()), RunState.QUEUED, TriggerKind.OPERATOR, "a", "r", 1.0, 1.0)
    )
    store.transition_run(
        run.id, expected=RunState.QUEUED, to=RunState.AWAITING_APPROVAL, reason="r"
    )
    digest = uuid4().hex * 2
    state = AdapterState.CANDIDATE
    return store.add_adapter(
        Adapter(f"opsd-{digest[:16]}", digest, 0, state, run.id, "/", 8, 8.0, 1, "f", 1.0)
    )


def everything(store: SqlStore) -> object:
    """All rows that such a change touches, without the times."""
    row = store.get_incumbent()
    return (
        (row.adapter, row.previous, row.canary, row.canary_share, row.epoch),
        [(adapter.name, adapter.state) for adapter in store.list_adapters()],
        [
            (run.id, run.state, [line.state for line in store.get_run(run.id).history])
            for run in store.list_runs(limit=99).items
        ],
        [(entry.action, entry.subject) for entry in store.list_audit(limit=99).items],
    )


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_old_or_new(store_url: str, verb: str, when: str) -> None:
    store = open_store(store_url)
    serving, other = add_candidate(store), add_candidate(store)
    store.promote(serving.name, expected_epoch=0, actor="a", reason="r")
    old = everything(store)
    store.close()

    call = CALLS[verb].format(name=other.name, epoch=1)
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(url=store_url, call=call)],
        env=dict(environ) | {VARIABLE: f"{verb}-{when}-commit"},
        check=False,
    )
    assert killed.returncode == -9

    store = open_store(store_url)
    found = everything(store)
    if when == "before":
        assert found == old
        # What did not happen can be done now.
        store.promote(other.name, expected_epoch=1, actor="a", reason="r")
    else:
        assert found != old
        epoch = store.get_incumbent().epoch
        assert epoch == (1 if verb == "reject" else 2)
        changed = {
            "promote": lambda: store.get_incumbent().adapter == other.name,
            "canary": lambda: store.get_incumbent().canary == other.name,
            "rollback": lambda: store.get_incumbent().previous == serving.name,
            "reject": lambda: store.get_adapter(other.name).state is AdapterState.REJECTED,
        }
        assert changed[verb]()
        expected = {
            "promote": RunState.PROMOTED,
            "canary": RunState.CANARY,
            "reject": RunState.REJECTED,
            "rollback": RunState.AWAITING_APPROVAL,
        }
        assert store.get_run(other.run_id).state is expected[verb]
        assert len(store.list_audit(limit=99).items) == 4
    store.close()


@pytest.mark.parametrize("verb", VOTES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_the_vote_with_what_it_decides_or_neither(
    store_url: str, verb: str, when: str
) -> None:
    store = open_store(store_url)
    candidate = add_candidate(store)
    store.vote_to_approve(
        candidate.name,
        actor="ana",
        reason="r",
        override=False,
        verdict="pass",
        policy=VotePolicy(2),
        expected_epoch=0,
        canary_plan=None,
    )
    store.close()
    call = VOTES[verb].format(name=candidate.name)
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(url=store_url, call=call)],
        env=dict(environ) | {VARIABLE: f"{verb}-{when}-commit"},
        check=False,
    )
    assert killed.returncode == -9
    store = open_store(store_url)
    state = store.get_adapter(candidate.name).state
    voters = [vote.actor for vote in store.list_votes(candidate.name)]
    if when == "before":
        assert (state, voters) == (AdapterState.CANDIDATE, ["ana"])
    else:
        decided = {"promote": AdapterState.INCUMBENT, "reject": AdapterState.REJECTED}
        assert (state, voters) == (decided[verb], ["ana", "ben"])
    store.close()
