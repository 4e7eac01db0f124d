"""A trainer that was lost is started again; one that failed is not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsd.daemon.runs.launcher import TrainerExit
from opsd.daemon.runs.lost import how_lost
from opsd.daemon.runs.metrics import restarts_total
from opsd.daemon.runs.processes import run_processes
from opsd.daemon.types.runs import Run, RunState

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab

FAILED, ABORTED, KILLED = 1, -6, -9


def restarts() -> float:
    ((sample, _),) = [
        (one, None)
        for metric in restarts_total.collect()
        for one in metric.samples
        if one.name == "opsd_run_restarts_total"
    ]
    return sample.value


def write_group(run_dir: Path, *ends: tuple[int | None, int | None]) -> None:
    ranks = [{"rank": rank, "exit_status": status, "host": ""} for rank, status in ends]
    (run_dir / "group.json").write_text(json.dumps({"ranks": ranks}))


def write_outcome(run_dir: Path, outcome: str) -> None:
    (run_dir / "result.json").write_text(json.dumps({"outcome": f"RUN_OUTCOME_{outcome}"}))


@pytest.mark.parametrize(
    ("ends", "outcome", "code", "how"),
    [
        ([], "", KILLED, "the trainer was killed by SIGKILL"),
        ([], "", None, "the trainer ended"),
        ([], "", 3, ""),
        ([], "FAILED", KILLED, ""),
        ([], "CANCELLED", 1, "the trainer was stopped from outside"),
        ([], "SUCCEEDED", KILLED, ""),
        ([(1, KILLED)], "", 1, "rank 1 was killed by SIGKILL"),
        ([(1, KILLED)], "CANCELLED", 1, "rank 1 was killed by SIGKILL"),
        # Rank 0 fails because its peer is gone: that is no failure of the run.
        ([(0, FAILED), (1, KILLED)], "FAILED", 1, "rank 1 was killed by SIGKILL"),
        ([(1, -11), (3, None)], "FAILED", 1, "rank 1 was killed by SIGSEGV, rank 3 was lost with"),
        ([(None, None)], "", 1, "a worker was lost while the ranks were started"),
        # torch aborts a rank whose peer has failed.
        ([(0, ABORTED), (1, FAILED)], "", 1, ""),
        ([(0, ABORTED)], "", 1, "rank 0 was killed by SIGABRT"),
        ([(0, FAILED)], "FAILED", 1, ""),
        ([(1, KILLED)], "SUCCEEDED", 1, ""),
    ],
)
def test_how_a_trainer_was_lost(
    tmp_path: Path,
    ends: list[tuple[int, int | None]],
    outcome: str,
    code: int | None,
    how: str,
) -> None:
    if ends:
        write_group(tmp_path, *ends)
    if outcome:
        write_outcome(tmp_path, outcome)
    said = how_lost(tmp_path, TrainerExit(code))
    assert said.startswith(how)
    assert bool(said) == bool(how)


@pytest.mark.parametrize("text", ["", "[]", '{"ranks": [{"rank": "x"}]}', '{"ranks": 3}'])
def test_a_group_file_that_cannot_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "group.json").write_text(text)
    assert how_lost(tmp_path, TrainerExit(1)) == ""
    assert how_lost(tmp_path, TrainerExit(KILLED)) == "the trainer was killed by SIGKILL"


def test_a_result_that_cannot_be_read_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{not json")
    assert how_lost(tmp_path, TrainerExit(None)) == ""


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("killed", "the trainer was killed by SIGKILL, at step 1"),
        ("stopped", "the trainer was stopped from outside, not by a cancelled run"),
        ("loses_a_rank", "rank 1 was killed by SIGKILL, at step"),
    ],
)
async def test_a_lost_trainer_is_started_again_up_to_a_limit(
    lab: Lab, scenario: str, reason: str
) -> None:
    before = restarts()
    lab.set_runs(max_launches=3)
    run = await lab.run(scenario)
    assert run.state is RunState.FAILED
    assert run.launches == 3
    assert reason in run.error
    assert "started 3 times (runs.max_launches)" in run.error
    assert restarts() - before == 2
    assert [line[:3] for line in lab.store.audit] == [("opsd", "run.restart", run.id)] * 2
    assert "launch 3 of at most 3" in lab.store.audit[-1][3]
    assert lab.store.lease is None
    assert run_processes(run.id, None) == []


async def test_a_trainer_that_fails_is_not_started_again(lab: Lab) -> None:
    run = await lab.run("failed")
    assert (run.state, run.launches) == (RunState.FAILED, 1)
    assert lab.store.audit == []


async def test_a_killed_trainer_goes_on(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    run = await lab.training(await lab.trigger(controller))
    write_outcome(Path(run.run_dir), "FAILED")
    write_group(Path(run.run_dir), (0, FAILED), (1, KILLED))
    for pid in run_processes(run.id, None):
        os.kill(pid, signal.SIGKILL)
    run = await lab.until(run, lambda row: row.launches == 2)
    assert "rank 1 was killed by SIGKILL" in run.reason
    assert run.state is RunState.TRAINING
    run_dir = Path(run.run_dir)
    await lab.until(run, lambda _: not (run_dir / "group.json").exists())
    (run_dir / "go").touch()
    run = await lab.settled(controller, run)
    assert run.state is RunState.AWAITING_APPROVAL


async def test_a_loss_while_the_daemon_was_down_is_seen_by_the_next(lab: Lab) -> None:
    lab.scenario("until_told")
    run = await lab.training(await lab.trigger(await lab.started()))
    await lab.controllers[-1].stop()
    lab.launcher.terminate(run.id, Path(run.run_dir), grace_s=0.0)
    write_outcome(Path(run.run_dir), "FAILED")
    write_group(Path(run.run_dir), (0, FAILED), (1, KILLED))
    controller = await lab.started()
    run = await lab.until(run, lambda row: row.launches == 2)
    assert "while the daemon was down, rank 1 was killed by SIGKILL" in run.reason
    (Path(run.run_dir) / "go").touch()
    assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL


async def test_a_cancelled_run_is_not_started_again(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    run: Run = await lab.training(await lab.trigger(controller))
    run = await controller.cancel(run.id, actor="ada", reason="enough")
    assert (run.state, run.launches) == (RunState.CANCELLED, 1)
    assert lab.store.audit == []
