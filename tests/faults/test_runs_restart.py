"""A daemon that is killed in the middle of a run, and the one that comes after it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from opsd.daemon.runs.launcher import TorchrunLauncher
from opsd.daemon.runs.processes import run_processes
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind
from opsd.daemon.types.runs import Run, RunState

DAEMON = Path(__file__).with_name("runs_daemon.py")
FAKE_TRAINER = Path(__file__).parents[1] / "unit" / "runs" / "fake_trainer.py"
SETTINGS = {
    "pool": {"device": "cpu", "num_devices": 1},
    "runs": {"min_pairs": 3, "poll_interval_s": 0.05, "kill_grace_s": 0.5},
    "training": {"heartbeat_interval_s": 0.1, "optim": {"num_steps": 3, "warmup_steps": 1}},
}


class Machine:
    """A state directory, the daemon on it, and a look at its one run."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.url = f"sqlite:///{state_dir}/opsd.db"
        self.daemon: subprocess.Popen[str] | None = None
        store = open_store(self.url)
        for number in range(5):
            store.add_pair(_pair(number))
        store.close()

    def start(self) -> None:
        command = [sys.executable, str(DAEMON), str(self.state_dir), "/no/model"]
        command += [json.dumps(SETTINGS), "--fake", str(FAKE_TRAINER), "--trigger", "the-one"]
        self.daemon = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.daemon.stdout is not None
        assert self.daemon.stdout.readline() == "ready\n"

    def kill(self) -> None:
        if self.daemon is not None and self.daemon.stdout is not None:
            self.daemon.kill()
            self.daemon.wait()
            self.daemon.stdout.close()
            self.daemon = None

    def run(self) -> Run:
        store = open_store(self.url, exclusive=False)
        try:
            (run,) = store.list_runs(limit=2).items
            return store.get_run(run.id)
        finally:
            store.close()

    def until(self, holds: Callable[[Run], bool]) -> Run:
        deadline = time.monotonic() + 60
        while not holds(run := self.run()):
            assert time.monotonic() < deadline, f"never came true: {run}"
            time.sleep(0.05)
        return run

    def training(self) -> Run:
        """Once the trainer has written its first event."""
        run = self.until(lambda row: row.launches > 0 and row.state is RunState.TRAINING)
        events = Path(run.run_dir) / "events.jsonl"
        return self.until(lambda _: events.exists() and events.stat().st_size > 0)


def _pair(number: int) -> Pair:
    given = PairInput(str(uuid4()), f"What is {number}+1?", "s", "numeric", str(number + 1))
    verdict = Verdict(VerdictKind.PASS, "numeric", "")
    return Pair(given, PairStatus.VERIFIED, verdict, "t", 1.0, uuid4().hex, uuid4().hex)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setenv("OPSD_TRAINER_FAKE", "until_told")
    made = Machine(tmp_path)
    made.start()
    yield made
    made.kill()
    run = made.run()
    if run.run_dir:
        TorchrunLauncher().terminate(run.id, Path(run.run_dir), grace_s=0.0)


def test_the_trainer_outlives_the_daemon_and_the_next_one_adopts_it(machine: Machine) -> None:
    run = machine.training()
    machine.kill()
    trainers = run_processes(run.id, None)
    assert len(trainers) == 1

    machine.start()
    time.sleep(0.3)
    assert run_processes(run.id, None) == trainers
    (Path(run.run_dir) / "go").touch()
    run = machine.until(lambda row: row.state is RunState.AWAITING_APPROVAL)

    assert (run.launches, run.step, run.num_pairs) == (1, 3, 5)
    states = [str(line.state) for line in run.history]
    assert states == ["queued", "preparing", "training", "evaluating", "awaiting_approval"]


def test_a_trainer_that_was_through_meanwhile_is_taken_up(machine: Machine) -> None:
    run = machine.training()
    machine.kill()
    (Path(run.run_dir) / "go").touch()
    machine.until(lambda _: not run_processes(run.id, None))
    assert machine.run().state is RunState.TRAINING
    machine.start()
    run = machine.until(lambda row: row.state is RunState.AWAITING_APPROVAL)
    assert run.launches == 1


def test_a_trainer_that_died_with_the_daemon_is_launched_again(machine: Machine) -> None:
    run = machine.training()
    machine.kill()
    TorchrunLauncher().terminate(run.id, Path(run.run_dir), grace_s=0.0)
    machine.start()
    run = machine.until(lambda row: row.launches == 2)
    (Path(run.run_dir) / "go").touch()
    machine.until(lambda row: row.state is RunState.AWAITING_APPROVAL)
