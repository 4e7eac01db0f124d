"""kill -9 at any moment, and resume: the adapter is the undisturbed run's, byte for byte."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import eventually, rank_processes, steps_of_launch, trainer_variables

MakeRun = Callable[..., Path]
Train = Callable[[Path], Any]

pytestmark = pytest.mark.slow

NUM_KILLS = 3
NUM_STEPS = 30


def long_run(make_run: MakeRun, name: str, **changes: Any) -> Path:
    optim = {
        "num_steps": NUM_STEPS,
        "problems_per_step": 4,
        "micro_batch_size": 4,
        "learning_rate": 0.01,
        "warmup_steps": 2,
    }
    lora = {"rank": 4, "alpha": 8, "dropout": 0.1}
    return make_run(name, optim=optim, lora=lora, checkpoint_every_steps=2, **changes)


def start(run_json: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "opsd.trainer", str(run_json)], env=trainer_variables()
    )


def test_kill_9_at_random_moments_changes_nothing(make_run: MakeRun, train: Train) -> None:
    objective = {"teacher": "TEACHER_EMA", "ema_decay": 0.9}
    run_json = long_run(make_run, "killed", objective=objective)
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for launch in range(1, NUM_KILLS + 1):
        least = draw.randrange(1, 4)
        process = start(run_json)
        eventually(lambda: len(steps_of_launch(run_json.parent, launch)) >= least)  # noqa: B023
        time.sleep(draw.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was through before it could be killed"
        assert not (run_json.parent / "result.json").exists()

    resumed = train(run_json)
    undisturbed = train(long_run(make_run, "whole", objective=objective))

    assert resumed.status == undisturbed.status == 0
    assert resumed.adapter == undisturbed.adapter
    assert resumed.result.generated_tokens == undisturbed.result.generated_tokens
    last = steps_of_launch(run_json.parent, NUM_KILLS + 1)
    assert 1 < last[0] <= NUM_STEPS, "it began again instead of going on"


def test_a_rank_that_is_killed_is_named_beside_the_result(make_run: MakeRun) -> None:
    run_json = long_run(make_run, "run", num_processes=2)
    agent = subprocess.Popen(
        [sys.executable, "-m", "opsd.trainer.launch.torchrun", "2", str(run_json)],
        env=trainer_variables(),
    )
    eventually(lambda: steps_of_launch(run_json.parent, 1))
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(rank_processes([int(pid) for pid in children])[1], signal.SIGKILL)
    assert agent.wait() == 1
    ranks = json.loads((run_json.parent / "group.json").read_text())["ranks"]
    assert {"rank": 1, "exit_status": -signal.SIGKILL, "host": ""} in ranks
