"""The life of a run, as data.

``TRANSITIONS`` is the one table of what may follow what; nothing else decides it.
"""

from __future__ import annotations

from typing import Final

from opsd.daemon.types.runs import RunState

_ENDS: Final = frozenset({RunState.FAILED, RunState.CANCELLED})

TRANSITIONS: Final[dict[RunState, frozenset[RunState]]] = {
    RunState.QUEUED: _ENDS | {RunState.PREPARING},
    RunState.PREPARING: _ENDS | {RunState.TRAINING},
    RunState.TRAINING: _ENDS | {RunState.EVALUATING},
    RunState.EVALUATING: _ENDS | {RunState.AWAITING_APPROVAL, RunState.REJECTED},
    RunState.AWAITING_APPROVAL: _ENDS | {RunState.CANARY, RunState.REJECTED},
    RunState.CANARY: _ENDS | {RunState.PROMOTED, RunState.ROLLED_BACK},
    RunState.PROMOTED: frozenset({RunState.ROLLED_BACK}),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.REJECTED: frozenset(),
    RunState.ROLLED_BACK: frozenset(),
}

OPEN_STATES: Final = frozenset(
    {
        RunState.QUEUED,
        RunState.PREPARING,
        RunState.TRAINING,
        RunState.EVALUATING,
        RunState.AWAITING_APPROVAL,
        RunState.CANARY,
    }
)
"""A run in one of these is not over."""

UNDECIDED_STATES: Final = OPEN_STATES - {RunState.AWAITING_APPROVAL, RunState.CANARY}
"""The daemon itself is still at work on the run; automatic triggers wait for it."""

CANCELLABLE_STATES: Final = OPEN_STATES - {RunState.CANARY}
"""A canary carries traffic: it is withdrawn by a rollback, not by cancelling its run."""


def is_legal(current: RunState, following: RunState) -> bool:
    """Whether a run may go from ``current`` to ``following``; staying is not a transition."""
    return following in TRANSITIONS[current]


def is_final(state: RunState) -> bool:
    """Whether the run is over. A PROMOTED run is over, although it may still be rolled back."""
    return state not in OPEN_STATES
