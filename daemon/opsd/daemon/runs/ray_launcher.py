"""Trainers on a Ray cluster.

The driver is a process of this machine like torchrun's agent, and is started, found again and ended
in the same way. What it has in the cluster ends with it: Ray sees to that, and every rank ends with
its Ray worker.
"""

from __future__ import annotations

import sys

from opsd.daemon.config.schema import PoolConfig
from opsd.daemon.runs.launcher import Launcher, LaunchRequest, ProcessLauncher, TorchrunLauncher
from opsd.daemon.runs.spec import SPEC_NAME


class RayLauncher(ProcessLauncher):
    """Each rank in a Ray Train worker; this machine belongs to the cluster."""

    def __init__(self, pool: PoolConfig) -> None:
        # The driver only waits; Ray has a niceness of its own for workers.
        super().__init__(command=self.driver_command, nice=0)
        self._pool = pool

    def driver_command(self, request: LaunchRequest) -> list[str]:
        """The driver of a group of ``num_processes`` ranks."""
        return [
            *(sys.executable, "-m", "opsd.trainer.launch.ray_driver"),
            *("--address", self._pool.ray_address or "auto"),
            *("--cpus-per-rank", str(self._pool.ray_cpus_per_process)),
            *("--resource", self._pool.ray_resource),
            *("--timeout-s", str(self._pool.ray_timeout_s)),
            str(request.run_dir / SPEC_NAME),
        ]


def launcher_for(pool: PoolConfig) -> Launcher:
    """What ``pool.launcher`` names."""
    if pool.launcher == "ray":
        return RayLauncher(pool)
    return TorchrunLauncher(visible_devices=pool.visible_devices, nice=pool.nice)
