"""A rank of a real group is killed: the daemon starts the group again, and nothing is different."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from trainer_runs import (
    adapter_bytes,
    copy_run,
    eventually,
    rank_processes,
    steps_of_launch,
    trainer_variables,
)

from opsd.daemon.runs.launcher import TorchrunLauncher
from opsd.daemon.runs.processes import run_processes
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState

pytestmark = pytest.mark.slow

DAEMON = Path(__file__).with_name("runs_daemon.py")
NUM_STEPS = 40
SETTINGS = {
    "pool": {"device": "cpu", "num_devices": 2, "threads_per_process": 1},
    "runs": {"min_pairs": 3, "poll_interval_s": 0.1, "max_launches": 3},
    "training": {
        "rollout": {"max_new_tokens": 8},
        "objective": {"clip_mode": "none"},
        "lora": {"rank": 4, "alpha": 8.0},
        "optim": {
            "num_steps": NUM_STEPS,
            "problems_per_step": 4,
            "warmup_steps": 1,
            "learning_rate": 0.01,
        },
        "heartbeat_interval_s": 0.5,
        "checkpoint_every_steps": 3,
        "teacher_check": {"num_problems": 0},
        "curriculum": {"enabled": False},
    },
}


class Machine:
    """A state directory with the daemon on it, and a look at its one run."""

    def __init__(self, state_dir: Path, model_dir: Path) -> None:
        self.state_dir = state_dir
        self.url = f"sqlite:///{state_dir}/opsd.db"
        store = open_store(self.url)
        for number in range(6):
            given = PairInput(
                str(uuid4()), f"{number}+1", str(number + 1), "exact", str(number + 1)
            )
            verdict = Verdict(VerdictKind.PASS, "exact", "")
            store.add_pair(
                Pair(given, PairStatus.VERIFIED, verdict, "t", 1.0, uuid4().hex, uuid4().hex)
            )
        store.close()
        command = [sys.executable, str(DAEMON), str(state_dir), str(model_dir)]
        command += [json.dumps(SETTINGS), "--trigger", "the-one"]
        self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.daemon.stdout is not None
        assert self.daemon.stdout.readline() == "ready\n"

    def run(self) -> Run:
        store = open_store(self.url, exclusive=False)
        try:
            (run,) = store.list_runs(limit=2).items
            run = store.get_run(run.id)
        finally:
            store.close()
        assert run.state is not RunState.FAILED, run.error + run.log_tail
        return run

    def audit(self) -> list[tuple[str, str]]:
        """Action and reason, oldest first."""
        store = open_store(self.url, exclusive=False)
        try:
            entries = store.list_audit(limit=20).items
            return [(entry.action, entry.reason) for entry in reversed(entries)]
        finally:
            store.close()

    def close(self) -> None:
        self.daemon.kill()
        self.daemon.wait()
        assert self.daemon.stdout is not None
        self.daemon.stdout.close()
        for run_dir in (self.state_dir / "runs").glob("*"):
            TorchrunLauncher().terminate(run_dir.name, run_dir, grace_s=0.0)


@pytest.fixture
def machine(
    tmp_path: Path, micro_model: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Machine]:
    monkeypatch.delenv("OPSD_TRAINER_FAILPOINT", raising=False)
    (tmp_path / "state").mkdir()
    made = Machine(tmp_path / "state", micro_model)
    yield made
    made.close()


def kill_rank(machine: Machine, launch: int, rank: int, least_steps: int) -> None:
    """Once that launch has done so many steps of its own."""
    eventually(lambda: machine.run().launches == launch)
    eventually(lambda: len(steps_of_launch(Path(machine.run().run_dir), launch)) >= least_steps)
    run = machine.run()
    os.kill(rank_processes(run_processes(run.id, None))[rank], signal.SIGKILL)


def test_a_group_that_loses_a_rank_goes_on_from_its_checkpoint(
    machine: Machine, tmp_path: Path
) -> None:
    kill_rank(machine, launch=1, rank=1, least_steps=5)
    kill_rank(machine, launch=2, rank=0, least_steps=2)
    eventually(lambda: machine.run().state is RunState.AWAITING_APPROVAL, every_s=0.3)
    run = machine.run()

    assert (run.launches, run.step) == (3, NUM_STEPS)
    restarts = [reason for action, reason in machine.audit() if action == "run.restart"]
    assert "rank 1 was killed by SIGKILL" in restarts[0]
    assert "rank 0 was killed by SIGKILL" in restarts[1]
    assert "launch 3 of at most 3" in restarts[1]
    run_dir = Path(run.run_dir)
    assert steps_of_launch(run_dir, 2)[0] >= 4, "it began again instead of going on"

    whole = copy_run(run_dir, tmp_path / "whole")
    command = [sys.executable, "-m", "opsd.trainer.launch.torchrun", "2", str(whole)]
    subprocess.run(command, env=trainer_variables(), check=True, capture_output=True)
    assert adapter_bytes(tmp_path / "whole") == adapter_bytes(run_dir)
