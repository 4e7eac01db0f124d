"""A real daemon in a process of its own, spoken to with the real command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_TIMEOUT_S = 240
CLI_TIMEOUT_S = 240

CONFIG = """
state_dir = "state"
[model]
path = {model}
dtype = "float32"
[engine]
device = "cpu"
enforce_eager = true
kv_cache_mib = 64
max_lora_rank = 8
[server]
port = 0
metrics_port = 0
[store]
url = {store_url}
[pool]
device = "cpu"
num_devices = 1
threads_per_process = 1
[runs]
min_pairs = 4
stall_timeout_s = 120
[training]
heartbeat_interval_s = 0.5
checkpoint_every_steps = 2
[training.rollout]
max_new_tokens = 8
[training.lora]
rank = 4
alpha = 8
# A model of noise can make nothing of a solution.
[training.teacher_check]
num_problems = 0

[training.optim]
num_steps = 3
warmup_steps = 1
problems_per_step = 4
micro_batch_size = 4
learning_rate = 1e-2
max_grad_norm = 1.0
max_skipped_steps = 0
[gate]
max_tokens = 8
[[gate.suites]]
name = "sums"
path = "sums.jsonl"
role = "target"
[[gate.suites]]
name = "manners"
path = "manners.jsonl"
role = "guard"
margin = 0.2
"""


@dataclass
class LiveDaemon:
    """``opsd serve`` on a directory of its own."""

    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return str(self.endpoints()["address"])

    @property
    def log(self) -> str:
        path = self.directory / "daemon.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def endpoints(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "state" / "daemon.json").read_text())
        return found

    def start(self, *options: str) -> None:
        self.launch(*options)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._ready():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the daemon is not ready:\n{self.log[-6000:]}")
            time.sleep(0.1)

    def launch(self, *options: str) -> None:
        """Starts it without waiting."""
        with (self.directory / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "opsd.daemon.app", "--config", "opsd.toml", *options],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )

    def kill(self) -> None:
        """As if the power went."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def cli(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs one `opsd` command against this daemon."""
        return subprocess.run(
            [sys.executable, "-m", "opsd.daemon.cli.main", "--address", self.address, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=CLI_TIMEOUT_S,
            check=False,
            env={**os.environ, "OPSD_ACTOR": "e2e"},
            cwd=self.directory,
        )

    def json(self, *arguments: str, stdin: str | None = None) -> Any:
        """The output of a command that must succeed, with ``-o json``."""
        done = self.cli(*arguments, "-o", "json", stdin=stdin)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log[-4000:]}"
        return json.loads(done.stdout)

    def _ready(self) -> bool:
        try:
            endpoints = self.endpoints()
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        assert self.process is not None
        if endpoints["pid"] != self.process.pid:
            return False
        with grpc.insecure_channel(endpoints["address"]) as channel:
            # The stub gets its methods in __init__, where type stubs do not look.
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                reply = stub.Check(  # type: ignore[attr-defined]
                    health_pb2.HealthCheckRequest(), timeout=2
                )
            except grpc.RpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


MakeDaemon = Callable[..., LiveDaemon]
"""``make(store_url="", **environment)``: a daemon on a directory of its own, not started yet."""
