"""Starting, finding again and ending the trainer of a run."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Protocol

from opsd.daemon.errors import TrainerFailure
from opsd.daemon.runs.files import write_atomically
from opsd.daemon.runs.processes import (
    RUN_TAG,
    ProcessIdentity,
    end_run_processes,
    identify,
    is_running,
)
from opsd.daemon.runs.spec import SPEC_NAME

logger = logging.getLogger(__name__)

LOG_NAME: Final = "trainer.log"
PROCESS_NAME: Final = "process.json"

_DAEMON_ONLY_PREFIXES: Final = ("OPSD_", "VLLM_", "TORCHELASTIC_", "PET_", "LISTEN_")
_DAEMON_ONLY: Final = frozenset(
    {
        "GROUP_RANK",
        "INVOCATION_ID",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        "NOTIFY_SOCKET",
        "OMP_NUM_THREADS",
        "PGPASSWORD",
        "PROMETHEUS_MULTIPROC_DIR",
        "RANK",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "WORLD_SIZE",
    }
)
_FOR_THE_TRAINER: Final = "OPSD_TRAINER_"

# A Popen that is dropped while its child lives warns, and its zombie would be nobody's to reap.
_children: Final[dict[ProcessIdentity, subprocess.Popen[bytes]]] = {}


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """What a launcher needs to know of a run."""

    run_id: str
    run_dir: Path
    device: str  # "cpu" or "cuda"
    num_processes: int
    threads_per_process: int  # 0: torch's default


@dataclass(frozen=True, slots=True)
class TrainerExit:
    """How a trainer ended; ``code`` is None when it was not our child, negative for a signal."""

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "ended (it was started by an earlier daemon, so its exit status is not known)"
        if self.code < 0:
            return f"was killed by {signal.Signals(-self.code).name}"
        return f"exited with status {self.code}"


class TrainerHandle(Protocol):
    """A trainer that was started for a run. Its methods may block."""

    @property
    def launched_unix_s(self) -> float: ...

    @property
    def events_offset(self) -> int:
        """Where in ``events.jsonl`` this launch begins, in bytes."""
        ...

    def poll(self) -> TrainerExit | None:
        """None while it runs."""
        ...


class Launcher(Protocol):
    """Runs trainers somewhere. Its methods may block; coroutines call them in a thread."""

    def launch(self, request: LaunchRequest, *, events_offset: int) -> TrainerHandle:
        """Starts the trainer on ``run_dir/run.json``; raises TrainerFailure when it cannot."""
        ...

    def adopt(self, run_id: str, run_dir: Path) -> TrainerHandle | None:
        """The run's trainer if it is running, whoever started it."""
        ...

    def terminate(self, run_id: str, run_dir: Path, *, grace_s: float) -> int:
        """Ends every process of the run and returns how many there were; 0 is no error.

        Raises TrainerFailure when a process cannot be ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalTrainer:
    """A process group on this machine."""

    identity: ProcessIdentity
    launched_unix_s: float
    events_offset: int

    def poll(self) -> TrainerExit | None:
        child = _children.get(self.identity)
        if child is not None:
            # Not asked for in /proc: it may end in between, and its status would be lost.
            code = child.poll()
            if code is None:
                return None
            del _children[self.identity]
            return TrainerExit(code)
        return None if is_running(self.identity) else TrainerExit(None)


def torchrun_command(request: LaunchRequest) -> list[str]:
    """torchrun's agent with ``num_processes`` ranks on this machine."""
    return [
        *(sys.executable, "-m", "opsd.trainer.launch.torchrun"),
        *(str(request.num_processes), str(request.run_dir / SPEC_NAME)),
    ]


class ProcessLauncher:
    """Runs trainers as processes of this machine that outlive the daemon.

    ``nice`` is added to the trainer's niceness, so that serving comes first on shared cores.
    ``visible_devices`` becomes CUDA_VISIBLE_DEVICES; empty: the daemon's own.
    """

    def __init__(
        self,
        *,
        command: Callable[[LaunchRequest], list[str]],
        visible_devices: str = "",
        nice: int = 10,
    ) -> None:
        self._visible_devices = visible_devices
        self._nice = nice
        self._command = command

    def launch(self, request: LaunchRequest, *, events_offset: int) -> LocalTrainer:
        command = self._command(request)
        try:
            with (request.run_dir / LOG_NAME).open("ab") as log:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=trainer_environment(request, os.environ, self._visible_devices),
                    start_new_session=True,
                )
        except OSError as error:
            raise TrainerFailure(f"{command[0]}: the trainer cannot be started: {error}") from error
        identity = identify(child.pid)
        assert identity is not None, "a child that was not waited for keeps its number"
        _children[identity] = child
        self._be_nice(child.pid)
        trainer = LocalTrainer(identity, time.time(), events_offset)
        _write_process(trainer, request.run_dir)
        logger.info("trainer started run=%s pid=%d", request.run_id, child.pid)
        return trainer

    def adopt(self, run_id: str, run_dir: Path) -> LocalTrainer | None:
        trainer = _read_process(run_dir)
        if trainer is None or trainer.poll() is not None:
            return None
        return trainer

    def terminate(self, run_id: str, run_dir: Path, *, grace_s: float) -> int:
        trainer = _read_process(run_dir)
        leader = None if trainer is None else trainer.identity
        count = end_run_processes(run_id, leader, grace_s=grace_s)
        child = None if leader is None else _children.get(leader)
        if child is not None:
            child.poll()  # nobody may ask how it ended, and it would stay a zombie
        if count:
            logger.info("trainer ended run=%s processes=%d", run_id, count)
        return count

    def _be_nice(self, pid: int) -> None:
        try:
            os.setpriority(os.PRIO_PGRP, pid, os.getpriority(os.PRIO_PROCESS, 0) + self._nice)
        except ProcessLookupError:
            pass  # it has ended; poll() tells
        except PermissionError as error:
            logger.warning("trainer keeps the daemon's priority pid=%d error=%s", pid, error)


class TorchrunLauncher(ProcessLauncher):
    """Every rank on this machine."""

    def __init__(
        self,
        *,
        visible_devices: str = "",
        nice: int = 10,
        command: Callable[[LaunchRequest], list[str]] = torchrun_command,
    ) -> None:
        super().__init__(command=command, visible_devices=visible_devices, nice=nice)


def trainer_environment(
    request: LaunchRequest, inherited: Mapping[str, str], visible_devices: str
) -> dict[str, str]:
    """The daemon's environment without what is only the daemon's, and with what the run needs."""
    environment = {
        name: value
        for name, value in inherited.items()
        if name.startswith(_FOR_THE_TRAINER)
        or not (name in _DAEMON_ONLY or name.startswith(_DAEMON_ONLY_PREFIXES))
    }
    environment[RUN_TAG] = request.run_id
    environment["PYTHONUNBUFFERED"] = "1"
    if request.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    elif visible_devices:
        environment["CUDA_VISIBLE_DEVICES"] = visible_devices
    if request.threads_per_process:
        environment["OMP_NUM_THREADS"] = str(request.threads_per_process)
    return environment


def _write_process(trainer: LocalTrainer, run_dir: Path) -> None:
    content = {
        **asdict(trainer.identity),
        "launched_unix_s": trainer.launched_unix_s,
        "events_offset": trainer.events_offset,
    }
    write_atomically(run_dir / PROCESS_NAME, json.dumps(content, indent=2).encode() + b"\n")


def _read_process(run_dir: Path) -> LocalTrainer | None:
    """None when no trainer was started, or its file is not one of ours."""
    path = run_dir / PROCESS_NAME
    try:
        content = json.loads(path.read_bytes())
        return LocalTrainer(
            identity=ProcessIdentity(
                pid=int(content["pid"]),
                pgid=int(content["pgid"]),
                start_time_ticks=int(content["start_time_ticks"]),
                boot_id=str(content["boot_id"]),
            ),
            launched_unix_s=float(content["launched_unix_s"]),
            events_offset=int(content["events_offset"]),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        logger.error("unreadable process file path=%s error=%r", path, error)
        return None
