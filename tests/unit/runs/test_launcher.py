"""Trainers as processes: started apart, found again, ended whole; never somebody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from opsd.daemon.config.schema import PoolConfig
from opsd.daemon.errors import TrainerFailure
from opsd.daemon.runs.launcher import (
    LaunchRequest,
    TorchrunLauncher,
    TrainerExit,
    torchrun_command,
    trainer_environment,
)
from opsd.daemon.runs.processes import is_running, read_stat, run_processes
from opsd.daemon.runs.ray_launcher import RayLauncher, launcher_for

SLEEP = "import time; time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "


def python(code: str, **environment: str) -> TorchrunLauncher:
    return TorchrunLauncher(nice=3, command=lambda _: [sys.executable, "-c", code])


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_a_trainer_has_its_own_session_log_and_niceness(request_for: LaunchRequest) -> None:
    launcher = python(f"import sys; print('out'); print('err', file=sys.stderr); {SLEEP}")
    trainer = launcher.launch(request_for, events_offset=17)
    pid = trainer.identity.pid
    try:
        assert os.getsid(pid) == os.getpgid(pid) == pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 3
        log = request_for.run_dir / "trainer.log"
        eventually(lambda: set(log.read_text().split()) == {"out", "err"})
        assert trainer.poll() is None
        again = TorchrunLauncher().adopt(request_for.run_id, request_for.run_dir)
        assert again == trainer
        assert again.events_offset == 17
    finally:
        assert launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=5.0) == 1
    assert not Path(f"/proc/{pid}").exists(), "a zombie"
    assert trainer.poll() == TrainerExit(-15)
    assert str(TrainerExit(-15)) == "was killed by SIGTERM"
    assert launcher.adopt(request_for.run_id, request_for.run_dir) is None


def test_a_trainer_deaf_to_sigterm_and_its_runaway_child_are_killed(
    request_for: LaunchRequest, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    launcher = python(
        f"{DEAF}import pathlib, subprocess, sys; "
        f"c = subprocess.Popen([sys.executable, '-c', {DEAF + SLEEP!r}], start_new_session=True); "
        f"pathlib.Path({str(child)!r}).write_text(str(c.pid)); {SLEEP}"
    )
    launcher.launch(request_for, events_offset=0)
    eventually(lambda: child.exists() and bool(child.read_text()))
    assert len(run_processes(request_for.run_id, None)) == 2
    assert launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=0.1) == 2
    assert run_processes(request_for.run_id, None) == []
    assert launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=0.1) == 0


def test_a_child_that_dropped_its_environment_ends_with_its_session(
    request_for: LaunchRequest, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    launcher = python(
        "import pathlib, subprocess, sys; "
        f"c = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}); "
        f"pathlib.Path({str(child)!r}).write_text(str(c.pid)); {SLEEP}"
    )
    launcher.launch(request_for, events_offset=0)
    eventually(lambda: child.exists() and bool(child.read_text()))
    launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=5.0)
    stat = read_stat(int(child.read_text()))
    assert stat is None or not stat.running


def test_ranks_that_outlived_their_agent_are_ended(
    request_for: LaunchRequest, tmp_path: Path
) -> None:
    launcher = python(
        "import subprocess, sys; "
        f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"
    )
    trainer = launcher.launch(request_for, events_offset=0)
    eventually(lambda: trainer.poll() is not None)
    assert launcher.adopt(request_for.run_id, request_for.run_dir) is None
    assert launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=5.0) == 1


@pytest.mark.parametrize("wrong", ["start_time_ticks", "boot_id"])
def test_a_reused_process_number_is_neither_adopted_nor_killed(
    request_for: LaunchRequest, bystander: subprocess.Popen[bytes], wrong: str
) -> None:
    launcher = python("pass")
    trainer = launcher.launch(request_for, events_offset=0)
    eventually(lambda: trainer.poll() == TrainerExit(0))
    path = request_for.run_dir / "process.json"
    stat = read_stat(bystander.pid)
    assert stat is not None
    content = json.loads(path.read_text())
    content |= {
        "pid": bystander.pid,
        "pgid": bystander.pid,
        "start_time_ticks": stat.start_time_ticks,
    }
    content[wrong] = {"start_time_ticks": stat.start_time_ticks - 1, "boot_id": "before"}[wrong]
    path.write_text(json.dumps(content))

    assert launcher.adopt(request_for.run_id, request_for.run_dir) is None
    assert launcher.terminate(request_for.run_id, request_for.run_dir, grace_s=0.1) == 0
    assert bystander.poll() is None


def test_a_zombie_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    eventually(lambda: (stat := read_stat(child.pid)) is not None and stat.state == "Z")
    stat = read_stat(child.pid)
    assert stat is not None
    assert not stat.running
    child.wait()
    assert read_stat(child.pid) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}'])
def test_an_unreadable_process_file_is_no_trainer(request_for: LaunchRequest, text: str) -> None:
    (request_for.run_dir / "process.json").write_text(text)
    assert TorchrunLauncher().adopt(request_for.run_id, request_for.run_dir) is None


def test_a_command_that_is_not_there_is_named(request_for: LaunchRequest) -> None:
    launcher = TorchrunLauncher(command=lambda _: ["/no/such/python"])
    with pytest.raises(TrainerFailure, match="/no/such/python"):
        launcher.launch(request_for, events_offset=0)


def test_the_environment_is_the_trainers_own(request_for: LaunchRequest) -> None:
    daemon = {
        "PATH": "/bin",
        "PYTHONPATH": "/src",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OPSD_STORE__URL": "postgresql://user:secret@host/opsd",
        "OPSD_TRAINER_FAILPOINT": "after-step:3",
        "PGPASSWORD": "secret",
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "RANK": "3",
        "OMP_NUM_THREADS": "64",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    environment = trainer_environment(request_for, daemon, "")
    assert environment == {
        "PATH": "/bin",
        "PYTHONPATH": "/src",
        "OPSD_TRAINER_FAILPOINT": "after-step:3",
        "OPSD_RUN_ID": request_for.run_id,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
    }
    on_gpus = LaunchRequest("r", request_for.run_dir, "cuda", 2, 0)
    assert trainer_environment(on_gpus, daemon, "")["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert trainer_environment(on_gpus, daemon, "2,3")["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "OMP_NUM_THREADS" not in trainer_environment(on_gpus, daemon, "")


def test_torchrun_is_asked_for_as_many_ranks_as_the_pool_has(request_for: LaunchRequest) -> None:
    command = torchrun_command(replace(request_for, num_processes=4))
    run_json = str(request_for.run_dir / "run.json")
    assert command == [sys.executable, "-m", "opsd.trainer.launch.torchrun", "4", run_json]


def test_the_pool_says_who_launches(request_for: LaunchRequest) -> None:
    assert isinstance(launcher_for(PoolConfig()), TorchrunLauncher)
    given = {"ray_address": "10.0.0.1:6379", "ray_resource": "opsd", "ray_timeout_s": 7}
    launcher = launcher_for(PoolConfig.model_validate({"launcher": "ray", **given}))
    assert isinstance(launcher, RayLauncher)
    command = launcher.driver_command(request_for)
    assert command[:3] == [sys.executable, "-m", "opsd.trainer.launch.ray_driver"]
    assert command[3:] == [
        *("--address", "10.0.0.1:6379", "--cpus-per-rank", "1", "--resource", "opsd"),
        *("--timeout-s", "7.0", str(request_for.run_dir / "run.json")),
    ]
    here = RayLauncher(PoolConfig(launcher="ray")).driver_command(request_for)
    assert here[here.index("--address") + 1] == "auto"


def test_a_dead_process_is_not_running(bystander: subprocess.Popen[bytes]) -> None:
    from opsd.daemon.runs.processes import identify

    identity = identify(bystander.pid)
    assert identity is not None
    assert is_running(identity)
    bystander.kill()
    bystander.wait()
    assert not is_running(identity)
