"""Processes of a run as the kernel shows them in /proc.

A process is known by more than its number: a number is given away again once its process is gone,
so start time and boot go with it. A run's processes are further known by ``OPSD_RUN_ID`` in their
environment, because torchrun puts every rank into a session of its own, out of its process group's
reach.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opsd.daemon.errors import TrainerFailure

RUN_TAG: Final = "OPSD_RUN_ID"

_PROC: Final = Path("/proc")
_DEAD_STATES: Final = frozenset("ZXx")
_KILL_TIMEOUT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The fields of /proc/PID/stat that matter here."""

    pid: int
    state: str
    session: int
    start_time_ticks: int  # since boot

    @property
    def running(self) -> bool:
        """A zombie has ended; where nobody reaps it, it would look alive for ever."""
        return self.state not in _DEAD_STATES


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A session leader, beyond the reuse of its number."""

    pid: int
    pgid: int
    start_time_ticks: int
    boot_id: str


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> ProcessStat | None:
    """None when there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes().decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything, parentheses too.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(
        pid=pid, state=fields[0], session=int(fields[3]), start_time_ticks=int(fields[19])
    )


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a process that was started as a session leader."""
    stat = read_stat(pid)
    if stat is None:
        return None
    return ProcessIdentity(
        pid=pid, pgid=pid, start_time_ticks=stat.start_time_ticks, boot_id=boot_id()
    )


def is_same(identity: ProcessIdentity, stat: ProcessStat | None) -> bool:
    """Whether ``stat`` is of the very process that ``identity`` names, dead or alive."""
    return (
        stat is not None
        and stat.start_time_ticks == identity.start_time_ticks
        and boot_id() == identity.boot_id
    )


def is_running(identity: ProcessIdentity) -> bool:
    stat = read_stat(identity.pid)
    return stat is not None and stat.running and is_same(identity, stat)


@dataclass(frozen=True, slots=True)
class _Membership:
    """Tells the run's running processes from all others."""

    tag: bytes
    session: int | None  # the leader's, while its number is known to be still its own

    @classmethod
    def of(cls, run_id: str, leader: ProcessIdentity | None) -> _Membership:
        known = leader is not None and is_same(leader, read_stat(leader.pid))
        return cls(
            tag=f"{RUN_TAG}={run_id}".encode(), session=leader.pid if leader and known else None
        )

    def holds(self, stat: ProcessStat | None) -> bool:
        if stat is None or not stat.running or stat.pid == os.getpid():
            return False
        return stat.session == self.session or self.tag in _environment(stat.pid)


def run_processes(run_id: str, leader: ProcessIdentity | None) -> list[int]:
    """Every running process of the run: tagged with its id, or in its leader's session."""
    members = _Membership.of(run_id, leader)
    numbers = [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]
    return [pid for pid in numbers if members.holds(read_stat(pid))]


def end_run_processes(run_id: str, leader: ProcessIdentity | None, *, grace_s: float) -> int:
    """SIGTERM, ``grace_s`` to comply, SIGKILL; returns how many processes had to be signalled.

    Blocks until every process of the run is gone. Raises TrainerFailure when some survive SIGKILL.
    """
    first = run_processes(run_id, leader)
    if not first:
        return 0
    _signal_all(first, run_id, leader, signal.SIGTERM)
    if _wait_until_gone(run_id, leader, grace_s):
        return len(first)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while left := run_processes(run_id, leader):
        if time.monotonic() > deadline:
            raise TrainerFailure(
                f"processes {', '.join(map(str, left))} of run {run_id} survive SIGKILL: look for "
                "a hung device or file system"
            )
        _signal_all(left, run_id, leader, signal.SIGKILL)
        time.sleep(_LOOK_AGAIN_S)
    return len(first)


def _wait_until_gone(run_id: str, leader: ProcessIdentity | None, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while run_processes(run_id, leader):
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True


def _signal_all(
    pids: list[int], run_id: str, leader: ProcessIdentity | None, number: signal.Signals
) -> None:
    members = _Membership.of(run_id, leader)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                # The descriptor pins the process; asked again, the number is known to be the run's.
                if members.holds(read_stat(pid)):
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
