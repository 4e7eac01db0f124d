"""Ranks on a real local Ray cluster of two CPU workers, through the daemon's launcher."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer_runs import (
    adapter_bytes,
    eventually,
    rank_processes,
    read_events,
    steps_of_launch,
    trainer_variables,
    write_run,
)

from opsd.daemon.config.schema import PoolConfig
from opsd.daemon.runs.launcher import LaunchRequest, LocalTrainer, TrainerExit, TrainerHandle
from opsd.daemon.runs.lost import how_lost
from opsd.daemon.runs.processes import read_stat, run_processes
from opsd.daemon.runs.ray_launcher import RayLauncher

pytest.importorskip("ray", reason="ray is not installed: opsd[ray]", exc_type=ImportError)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

_PR_SET_PDEATHSIG = 1

ENDLESS = {
    "num_steps": 100_000,
    "problems_per_step": 4,
    "micro_batch_size": 2,
    "learning_rate": 0.001,
}


@dataclass(frozen=True)
class Cluster:
    address: str
    pid: int

    def training_workers(self) -> list[int]:
        """Ray's processes that will each start a rank."""
        return [pid for pid in family(self.pid) if b"RayTrainWorker" in command_line(pid)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster of this test's own, with two CPUs to give."""
    # Not under pytest's own directory: a socket's path must stay under 108 bytes.
    directory = tempfile.mkdtemp(prefix="opsd-ray-")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    libc = ctypes.CDLL(None)
    ray = Path(sys.executable).with_name("ray")
    head = subprocess.Popen(
        [
            *(str(ray), "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--port", str(port), "--temp-dir", directory),
            *("--num-cpus", "2", "--num-gpus", "0", "--include-dashboard", "false"),
            *("--object-store-memory", "80000000"),
        ],
        env=trainer_variables() | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test run that is killed leaves no cluster behind.
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),  # noqa: PLW1509
    )
    assert head.stdout is not None
    try:
        for line in head.stdout:
            if "Ray runtime started" in line:
                break
        else:
            pytest.fail("Ray did not start")
        yield Cluster(f"127.0.0.1:{port}", head.pid)
    finally:
        # All at once: asked to stop, it would take half a minute over it.
        for pid in family(head.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()
        head.stdout.close()
        shutil.rmtree(directory, ignore_errors=True)


def family(pid: int) -> list[int]:
    """The process and all that descend from it, none of which has lost its parent."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(one) for t in threads for one in (t / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid, *(one for child in children for one in family(child))]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


class Group:
    """A run and its launcher."""

    def __init__(self, address: str, run_json: Path) -> None:
        self.run_dir = run_json.parent
        spec = json.loads(run_json.read_text())
        self.request = LaunchRequest(
            run_id=spec["run_id"],
            run_dir=self.run_dir,
            device="cpu",
            num_processes=spec["num_processes"],
            threads_per_process=1,
        )
        self.launcher = RayLauncher(
            PoolConfig(launcher="ray", ray_address=address, ray_timeout_s=3.0)
        )
        self.handle: TrainerHandle | None = None

    def launch(self) -> TrainerHandle:
        self.handle = self.launcher.launch(self.request, events_offset=0)
        return self.handle

    def end(self) -> TrainerExit:
        """How the driver ended, once it has."""
        handle = self.handle
        assert handle is not None
        deadline = time.monotonic() + 150
        while (ended := handle.poll()) is None:
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)
        return ended

    def log(self) -> str:
        return (self.run_dir / "trainer.log").read_text()

    def ranks(self) -> dict[int, int]:
        return rank_processes(run_processes(self.request.run_id, None))

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run_dir / "result.json").read_text())
        return found

    def close(self) -> None:
        self.launcher.terminate(self.request.run_id, self.run_dir, grace_s=0.0)


@pytest.fixture
def make_group(
    cluster: Cluster, micro_model: Path, tmp_path: Path
) -> Iterator[Callable[..., Group]]:
    made: list[Group] = []

    def make(name: str, num_processes: int, **changes: Any) -> Group:
        run_json = write_run(tmp_path / name, micro_model, num_processes=num_processes, **changes)
        made.append(Group(cluster.address, run_json))
        return made[-1]

    yield make
    for group in made:
        group.close()


@pytest.fixture(scope="module")
def reference(micro_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of torchrun's two ranks."""
    run_dir = tmp_path_factory.mktemp("reference") / "torchrun"
    run_json = write_run(run_dir, micro_model, num_processes=2)
    command = [sys.executable, "-m", "opsd.trainer.launch.torchrun", "2", str(run_json)]
    subprocess.run(command, env=trainer_variables(), check=True, capture_output=True)
    return run_dir


def test_two_ranks_train_what_torchrun_trains_though_one_is_killed(
    make_group: Callable[..., Group], reference: Path
) -> None:
    two = make_group("two", 2)
    two.launch()
    eventually(lambda: len(steps_of_launch(two.run_dir, 1)) >= 3)
    os.kill(two.ranks()[1], signal.SIGKILL)
    ended = two.end()
    assert ended == TrainerExit(1), two.log()
    assert "rank 1 on" in how_lost(two.run_dir, ended)
    assert "was killed by SIGKILL" in how_lost(two.run_dir, ended)
    assert two.ranks() == {}
    (two.run_dir / "group.json").unlink()
    two.launch()
    assert two.end() == TrainerExit(0), two.log()
    assert steps_of_launch(two.run_dir, 2)[0] > 1, "it began again instead of going on"
    assert two.result()["outcome"] == "RUN_OUTCOME_SUCCEEDED"
    assert read_events(two.run_dir)[-1]["kind"] == "finished"
    assert adapter_bytes(two.run_dir) == adapter_bytes(reference)


def test_a_worker_that_dies_before_the_ranks_start_is_a_lost_one(
    make_group: Callable[..., Group], cluster: Cluster
) -> None:
    for number in range(5):
        group = make_group(f"start-{number}", 2)
        group.launch()
        eventually(lambda: bool(cluster.training_workers()))
        os.kill(cluster.training_workers()[0], signal.SIGKILL)
        ended = group.end()
        lost = how_lost(group.run_dir, ended)
        # Too early, Ray makes another process for the worker; too late, it is a rank that is lost.
        if ended == TrainerExit(1) and not lost.startswith("rank "):
            break
    assert ended == TrainerExit(1), group.log()
    assert lost == "a worker was lost while the ranks were started", group.log()
    (group.run_dir / "group.json").unlink()
    group.launch()
    assert group.end() == TrainerExit(0), group.log()


def test_one_rank_trains_what_two_train_though_its_driver_is_killed(
    make_group: Callable[..., Group], reference: Path
) -> None:
    one = make_group("one", 1)
    handle = one.launch()
    eventually(lambda: steps_of_launch(one.run_dir, 1))
    (rank,) = one.ranks().values()
    assert isinstance(handle, LocalTrainer)
    os.kill(handle.identity.pid, signal.SIGKILL)
    assert one.end() == TrainerExit(-signal.SIGKILL)
    eventually(lambda: (stat := read_stat(rank)) is None or not stat.running)
    one.launch()
    assert one.end() == TrainerExit(0), one.log()
    expected = load_file(reference / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(one.run_dir / "adapter" / "adapter_model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)


def test_cancelling_reaches_the_ranks_that_hold_the_pool(make_group: Callable[..., Group]) -> None:
    group = make_group("run", 2, optim=ENDLESS)
    handle = group.launch()
    eventually(lambda: steps_of_launch(group.run_dir, 1))
    late = make_group("late", 1)
    late.launch()
    assert late.end() == TrainerExit(1), late.log()
    assert "other work holds them" in late.result()["error"]

    assert isinstance(handle, LocalTrainer)
    # The driver alone: on a cluster, the ranks are not within the daemon's reach.
    os.kill(handle.identity.pid, signal.SIGTERM)
    assert group.end() == TrainerExit(143), group.log()
    assert group.ranks() == {}
    assert group.result()["outcome"] == "RUN_OUTCOME_CANCELLED"
    assert group.result()["steps_done"] >= 1
    assert read_events(group.run_dir)[-1]["message"] == "cancelled"


def test_a_cluster_with_too_few_devices_is_told_of(make_group: Callable[..., Group]) -> None:
    group = make_group("run", 4)
    group.launch()
    assert group.end() == TrainerExit(1)
    error = group.result()["error"]
    assert "has room for 2 workers of 1 CPU each, and pool.num_devices asks for 4" in error
    assert how_lost(group.run_dir, TrainerExit(1)) == ""


def test_a_machine_without_a_cluster_is_told_of(micro_model: Path, tmp_path: Path) -> None:
    group = Group("127.0.0.1:1", write_run(tmp_path / "run", micro_model))
    group.launch()
    assert group.end() == TrainerExit(1)
    assert "this machine is in no Ray cluster at 127.0.0.1:1" in group.result()["error"]
