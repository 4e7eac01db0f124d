"""How often and how long, where the configuration does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timing:
    """Defaults suit a daemon; tests shorten them."""

    progress_s: float = 0.5  # least time between two writes of a run's progress
    watch_poll_s: float = 1.0  # how soon a watcher sees what another process changed
    retry_first_s: float = 1.0  # doubles with each retry of an evaluation
    retry_longest_s: float = 30.0
    engine_attempts: int = 3  # evaluations that may end in an engine's or the store's failure
    not_ready_limit_s: float = 900.0  # how long an evaluation waits for the engine to be up
    max_errors: int = 5  # unexpected errors in a row after which a run is FAILED
