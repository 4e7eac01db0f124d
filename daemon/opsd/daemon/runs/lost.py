"""Was the trainer lost, or did it fail?

A trainer that fails says why in ``result.json``, and would fail again. One that is lost was killed:
by the kernel for its memory, with its machine, by somebody. Ranks that lose a peer fail themselves,
and even write results; so what the group's agent saw, ``group.json``, is asked first.
"""

from __future__ import annotations

import json
import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opsd.daemon.runs.launcher import TrainerExit
from opsd.daemon.runs.result import GROUP_NAME, has_result, outcome
from opsd.v1 import training_pb2

logger = logging.getLogger(__name__)

# torch aborts a rank whose peers have failed: by itself it says nothing of a loss.
_AFTER_A_PEER: Final = frozenset({-signal.SIGTERM, -signal.SIGABRT})


@dataclass(frozen=True, slots=True)
class RankEnd:
    """A line of ``group.json``."""

    rank: int | None  # None: a worker that was lost before it had one
    exit_status: int | None  # negative for a signal; None: nobody saw it
    host: str

    @property
    def failed_by_itself(self) -> bool:
        return self.exit_status is not None and self.exit_status > 0

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        if self.rank is None:
            return f"a worker{where} was lost while the ranks were started"
        if self.exit_status is None:
            return f"rank {self.rank}{where} was lost with its worker"
        return f"rank {self.rank}{where} was killed by {_signal_name(-self.exit_status)}"


def how_lost(run_dir: Path, ended: TrainerExit) -> str:
    """How a trainer that has ended was lost; empty when it was not: it succeeded or failed."""
    claimed = outcome(run_dir)
    if claimed == training_pb2.RUN_OUTCOME_SUCCEEDED:
        return ""
    lost = _lost_ranks(_read_group(run_dir))
    if lost:
        return ", ".join(map(str, lost))
    if claimed == training_pb2.RUN_OUTCOME_CANCELLED:
        return "the trainer was stopped from outside, not by a cancelled run"
    if not has_result(run_dir) and (ended.code is None or ended.code < 0):
        return f"the trainer {ended}"
    return ""


def _lost_ranks(ends: list[RankEnd]) -> list[RankEnd]:
    killed = [end for end in ends if not end.failed_by_itself and end.exit_status != 0]
    first = [end for end in killed if end.exit_status not in _AFTER_A_PEER]
    if first:
        return first
    return [] if any(end.failed_by_itself for end in ends) else killed


def _read_group(run_dir: Path) -> list[RankEnd]:
    path = run_dir / GROUP_NAME
    try:
        return [
            RankEnd(
                rank=None if one["rank"] is None else int(one["rank"]),
                exit_status=None if one["exit_status"] is None else int(one["exit_status"]),
                host=str(one["host"]),
            )
            for one in json.loads(path.read_bytes())["ranks"]
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.error("unreadable group file path=%s error=%r", path, error)
        return []


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
