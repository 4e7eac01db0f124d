"""The table of transitions, against the states as the documentation draws them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from opsd.daemon.runs.states import CANCELLABLE_STATES, OPEN_STATES, is_final, is_legal
from opsd.daemon.types.runs import RunState

PATH = ["queued", "preparing", "training", "evaluating", "awaiting_approval", "canary", "promoted"]
BRANCHES = {
    ("evaluating", "rejected"),
    ("awaiting_approval", "rejected"),
    ("canary", "rolled_back"),
    ("promoted", "rolled_back"),
}
LEGAL = (
    set(pairwise(PATH))
    | {(state, end) for state in PATH[:-1] for end in ("failed", "cancelled")}
    | BRANCHES
)


@pytest.mark.parametrize("current", RunState)
@pytest.mark.parametrize("following", RunState)
def test_exactly_the_drawn_transitions_are_legal(current: RunState, following: RunState) -> None:
    assert is_legal(current, following) is ((current.value, following.value) in LEGAL)


def test_what_is_over_is_over() -> None:
    assert {state.value for state in RunState if not is_final(state)} == set(PATH[:-1])
    for state in RunState:
        leaves = [other for other in RunState if is_legal(state, other)]
        assert leaves or is_final(state)
        if is_final(state) and state is not RunState.PROMOTED:
            assert not leaves


def test_whatever_can_be_cancelled_may_become_cancelled() -> None:
    assert OPEN_STATES - {RunState.CANARY} == CANCELLABLE_STATES
    assert all(is_legal(state, RunState.CANCELLED) for state in CANCELLABLE_STATES)
