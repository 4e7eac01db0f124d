"""Small runs for the real trainer, outside a daemon, and a look at what they leave."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_STEPS = 12


def write_run(run_dir: Path, model_dir: Path, **changes: Any) -> Path:
    """Makes ``run_dir`` with its shard and ``run.json``, whose path it returns."""
    run_dir.mkdir()
    pairs = [
        {
            "id": f"p{number}",
            "prompt": f"{number}+{number * 7 % 10}",
            "solution": str(number + number * 7 % 10),
            "reference": "",
            "verifier": "exact",
            "stratum": "",
        }
        for number in range(10)
    ]
    shard = "".join(json.dumps(pair) + "\n" for pair in pairs).encode()
    (run_dir / "shard.jsonl").write_bytes(shard)
    spec: dict[str, Any] = {
        "run_id": run_dir.name,
        "model": {"path": str(model_dir), "dtype": "float32"},
        "shard": {
            "path": str(run_dir / "shard.jsonl"),
            "sha256": hashlib.sha256(shard).hexdigest(),
            "num_pairs": len(pairs),
        },
        "rollout": {"max_new_tokens": 8, "temperature": 1.0},
        "lora": {"rank": 4, "alpha": 8},
        "optim": {
            "num_steps": NUM_STEPS,
            "problems_per_step": 4,
            "micro_batch_size": 2,
            "learning_rate": 0.01,
            "warmup_steps": 1,
        },
        "seed": 7,
        "heartbeat_interval_s": 0.2,
        "checkpoint_every_steps": 2,
        "output_dir": str(run_dir),
        "device": "cpu",
        "num_processes": 1,
        "threads_per_process": 1,
    }
    path = run_dir / "run.json"
    path.write_text(json.dumps(spec | changes))
    return path


def copy_run(original: Path, run_dir: Path) -> Path:
    """The same run in a directory of its own; returns the path of its ``run.json``."""
    spec = json.loads((original / "run.json").read_text())
    run_dir.mkdir()
    path = run_dir / "run.json"
    path.write_text(json.dumps(spec | {"output_dir": str(run_dir)}))
    return path


def adapter_bytes(run_dir: Path) -> bytes:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return b"".join((run_dir / "adapter" / name).read_bytes() for name in names)


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Whole events so far."""
    path = run_dir / "events.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps_of_launch(run_dir: Path, launch: int) -> list[int]:
    """The steps that a launch, from 1, has told of."""
    steps: list[int] = []
    for event in read_events(run_dir):
        launch -= event["kind"] == "started"
        if launch == 0 and event["kind"] == "step":
            steps.append(event["step"])
    return steps


def rank_processes(pids: list[int]) -> dict[int, int]:
    """rank → process number, of those processes that are ranks themselves."""
    found = {}
    for pid in pids:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        ranks = [line[5:] for line in environment if line.startswith(b"RANK=")]
        if ranks and (b"opsd.trainer" in command or b"opsd.trainer.launch.ray_rank" in command):
            found[int(ranks[0])] = pid
    return found


def eventually(
    holds: Callable[[], object], *, timeout_s: float = 120.0, every_s: float = 0.02
) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(every_s)


def trainer_variables() -> dict[str, str]:
    """This process's environment without what would bend a trainer."""
    return {k: v for k, v in os.environ.items() if not k.startswith("OPSD_TRAINER_")}
