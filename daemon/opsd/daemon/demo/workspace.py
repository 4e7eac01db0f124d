"""The tiny model, its problems, and the configuration of the demonstration's daemon."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from opsd.daemon.errors import OpsdError

TARGET = "target"
GUARDS = ("easy", "symbolic", "long")
MARGINS = {"target": 0.05, "easy": 0.08, "symbolic": 0.08, "long": 0.08}
NUM_ITEMS = {"target": 600, "easy": 300, "symbolic": 100, "long": 100}
"""Held-out problems of each suite; every one is answered four times on two cores."""


class DemoError(OpsdError, RuntimeError):
    """The demonstration cannot go on; the message says where to look."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A held-out problem, as the suite's file has it."""

    prompt: str
    reference: str
    stratum: str


@dataclass(frozen=True, slots=True)
class Workspace:
    tiny_dir: Path
    state_dir: Path
    config_path: Path
    suites: dict[str, list[Problem]]
    pairs: list[dict[str, str]]


async def make_tiny(cache_dir: Path, seed: int) -> Path:
    """Makes the model and its problems unless this cache holds them; returns their directory."""
    out = cache_dir / f"tiny-{seed}"
    out.parent.mkdir(parents=True, exist_ok=True)
    threads = str(min(2, os.cpu_count() or 1))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "opsd.trainer.tiny"),
        *("--out", str(out), "--seed", str(seed), "--threads", threads),
    )
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    if code != 0:
        raise DemoError(f"making the tiny model failed with exit status {code}; see above")
    return out


def prepare(
    tiny_dir: Path, work_dir: Path, *, seed: int, num_steps: int, num_pairs: int, wrong: bool
) -> Workspace:
    """Reads the problems and writes the daemon's configuration."""
    pairs_file = tiny_dir / ("wrong_pairs.jsonl" if wrong else "pairs.jsonl")
    pairs = _read_jsonl(pairs_file)[:num_pairs]
    suites = {name: _take_suite(tiny_dir, work_dir, name) for name in (TARGET, *GUARDS)}
    state_dir = work_dir / "state"
    config_path = work_dir / "opsd.toml"
    work_dir.mkdir(parents=True, exist_ok=True)
    config_path.write_text(
        _config_text(tiny_dir, work_dir, seed=seed, num_steps=num_steps, wrong=wrong),
        encoding="utf-8",
    )
    return Workspace(tiny_dir, state_dir, config_path, suites, pairs)


def _take_suite(tiny_dir: Path, work_dir: Path, name: str) -> list[Problem]:
    """Writes the suite's first items where the daemon will read them, and returns them."""
    lines = _read_jsonl(tiny_dir / "suites" / f"{name}.jsonl")[: NUM_ITEMS[name]]
    path = _suite_path(work_dir, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [Problem(line["prompt"], line["reference"], line["stratum"]) for line in lines]


def _suite_path(work_dir: Path, name: str) -> Path:
    return work_dir / "suites" / f"{name}.jsonl"


def _read_jsonl(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _config_text(tiny_dir: Path, work_dir: Path, *, seed: int, num_steps: int, wrong: bool) -> str:
    """The recipe for a model this small: the defaults suit billions of parameters.

    With so few steps JSD moves it farther than forward KL does (on the hardest of four models that
    were tried, +46 points against +34), and it has no style words that a clip would have to hold.
    """
    suites = "\n".join(
        f"""[[gate.suites]]
name = "{name}"
path = {json.dumps(str(_suite_path(work_dir, name)))}
role = "{"target" if name == TARGET else "guard"}"
margin = {MARGINS[name]}
"""
        for name in (TARGET, *GUARDS)
    )
    return f"""state_dir = {json.dumps(str(work_dir / "state"))}

[model]
path = {json.dumps(str(tiny_dir / "model"))}
dtype = "float32"

[engine]
device = "cpu"
enforce_eager = true
kv_cache_mib = 64
max_lora_rank = 16
threads = 1

[server]
port = 0
metrics_port = 0

[pool]
device = "cpu"
num_devices = 1
threads_per_process = 1

[runs]
min_pairs = 32

[training]
seed = {seed}
heartbeat_interval_s = 1.0
checkpoint_every_steps = 50

[training.rollout]
max_new_tokens = 64
temperature = 1.0
top_p = 1.0
top_k = 0

[training.objective]
divergence = "jsd"
jsd_beta = 0.5
clip_mode = "none"

# The control is to reach the gate: the check before the first step would stop it there.
[training.teacher_check]
num_problems = {0 if wrong else 64}

[training.lora]
rank = 16
alpha = 32.0

[training.optim]
num_steps = {num_steps}
problems_per_step = 64
micro_batch_size = 32
learning_rate = 8e-3
adam_beta2 = 0.95
warmup_steps = 5
final_lr_fraction = 0.1
max_grad_norm = 1.0

[gate]
max_tokens = 96
concurrency = 64

# Whoever learns to add becomes surer of sums, and leaves the model that could not far behind.
[gate.margins]
entropy_loss = 0.0
drift_kl_nats = 2.0

{suites}"""
