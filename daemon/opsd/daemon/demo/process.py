"""The daemon as a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from opsd.daemon.demo.workspace import DemoError, Workspace

_LOG_TAIL_BYTES = 4000


class DaemonProcess:
    """`opsd serve`, started, waited for and stopped as an operator would."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._log_path = workspace.state_dir.parent / "daemon.log"
        self._process: asyncio.subprocess.Process | None = None
        self.address = ""
        self.metrics_address = ""

    async def start(self, *, timeout_s: float = 180.0) -> float:
        """Starts it and waits until it is READY; returns how long that took, in seconds."""
        started = time.monotonic()
        with self._log_path.open("ab") as log_file:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "opsd.daemon.app",
                "--config",
                str(self._workspace.config_path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        deadline = started + timeout_s
        while not await self._is_ready():
            if self._process.returncode is not None:
                raise DemoError(
                    f"the daemon ended with status {self._process.returncode}:\n{self.log_tail()}"
                )
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the daemon is not ready after {timeout_s:g} s:\n{self.log_tail()}"
                )
            await asyncio.sleep(0.1)
        return time.monotonic() - started

    async def stop(self) -> None:
        """Asks it to drain and waits; kills it when it does not listen."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(self._process.wait(), timeout=60.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def log_tail(self) -> str:
        data = self._log_path.read_bytes()[-_LOG_TAIL_BYTES:]
        return data.decode("utf-8", "replace")

    async def _is_ready(self) -> bool:
        endpoints = self._endpoints()
        if endpoints is None:
            return False
        self.address = str(endpoints["address"])
        self.metrics_address = str(endpoints["metrics_address"])
        async with grpc.aio.insecure_channel(self.address) as channel:
            # The stub gets its methods in __init__, where type stubs do not look.
            stub = health_pb2_grpc.HealthStub(channel)
            try:
                reply = await stub.Check(  # type: ignore[attr-defined]
                    health_pb2.HealthCheckRequest(), timeout=2.0
                )
            except grpc.aio.AioRpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def _endpoints(self) -> dict[str, Any] | None:
        """What the daemon wrote once its ports were bound; None before that."""
        path: Path = self._workspace.state_dir / "daemon.json"
        try:
            endpoints: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        assert self._process is not None
        return endpoints if endpoints.get("pid") == self._process.pid else None
