"""The ranks of one run as a Ray Train worker group.

Each Ray worker holds the devices of one rank and runs that rank as a child process: the very
process that torchrun would start, with its own main thread for signals. One actor beside the driver
knows who has ended and whether the others are to stop.
"""

import os
import platform
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from opsd.trainer.errors import ClusterError
from opsd.trainer.launch.ends import RankEnd

NAMESPACE = "opsd"
_LOOK_AGAIN_S = 0.2
# From SIGTERM to SIGKILL of a rank, as torchrun's agent has it.
GRACE_S = 30.0
_RUN_TAG = "OPSD_RUN_ID"


class Group:
    """Lives in an actor named after the run: there is never a second group of the same run."""

    def __init__(self) -> None:
        self._stopping = False
        self._num_started = 0
        self._ends: list[RankEnd] = []

    def may_start(self) -> bool:
        """Asked by each rank first; False when the group is already to stop."""
        if self._stopping:
            return False
        self._num_started += 1
        return True

    def num_started(self) -> int:
        return self._num_started

    def stop(self) -> None:
        self._stopping = True

    def is_stopping(self) -> bool:
        return self._stopping

    def ended(self, end: RankEnd) -> None:
        """One rank that failed stops all: the others would wait for it in a collective."""
        self._ends.append(end)
        self._stopping = self._stopping or end.exit_status != 0

    def ends(self) -> list[RankEnd]:
        """In the order in which they came."""
        return self._ends


def group_name(run_id: str) -> str:
    return f"run-{run_id}"


@dataclass(frozen=True)
class RankJob:
    """What every worker is told."""

    run_id: str
    run_json: str
    device: str  # "cpu" or "cuda"
    environment: dict[str, str] = field(default_factory=dict)  # over the worker's own


def run_rank(config: dict[str, Any]) -> None:
    """Ray Train's train function: one rank from its start to its end."""
    job: RankJob = config["job"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    group = ray.get_actor(group_name(job.run_id), namespace=NAMESPACE)
    if not ray.get(group.may_start.remote()):
        return
    environment = os.environ | job.environment
    environment |= {
        _RUN_TAG: job.run_id,
        "RANK": str(rank),
        "WORLD_SIZE": str(context.get_world_size()),
        "LOCAL_RANK": str(context.get_local_rank()),
        "LOCAL_WORLD_SIZE": str(context.get_local_world_size()),
        "PYTHONUNBUFFERED": "1",
    }
    if job.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "opsd.trainer.launch.ray_rank"),
            *(str(os.getpid()), job.run_json),
        ],
        cwd=Path(job.run_json).parent,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        _wait(child, group)
    finally:
        if child.poll() is None:
            child.kill()
        status = child.wait()
    ray.get(group.ended.remote(RankEnd(rank, status, platform.node())))


def _wait(child: subprocess.Popen[bytes], group: Any) -> None:
    """Until the child has ended, or has been asked to and has not; raises when the group's actor,
    and so the driver, is gone."""
    while not ray.get(group.is_stopping.remote()):
        try:
            child.wait(_LOOK_AGAIN_S)
            return
        except subprocess.TimeoutExpired:
            continue
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"no end {GRACE_S:g} s after SIGTERM: killed", file=sys.stderr, flush=True)


class RankTrainer(DataParallelTrainer):  # type: ignore[misc]  # Ray's types are not followed
    """Ray Train without two processes of its own: the manager of data sets, of which there are
    none, and the watchman over the placement group, which would outlive a killed driver to do what
    Ray does anyway when the driver's connection closes."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
        return [one for one in callbacks if not isinstance(one, unneeded)]


class RankBackend(Backend):  # type: ignore[misc]  # as above
    """Before the ranks start: a place to meet, one run directory, one version of everything."""

    # LOCAL_RANK is then the index of the device, as under torchrun.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, RankBackendConfig)
        _check_versions(worker_group.execute(describe_host))
        self._check_shared(worker_group, backend_config)
        address, port = worker_group.execute_single(0, _free_address)
        worker_group.execute(_set_rendezvous, address, port)

    def _check_shared(self, worker_group: Any, config: "RankBackendConfig") -> None:
        """Each worker writes a file; then each must see the files of all."""
        run_dir, nonce = config.run_dir, config.nonce
        look = (_count_tokens, run_dir, nonce, len(worker_group), config.patience_s)
        try:
            problems = worker_group.execute(_write_token, run_dir, nonce)
            if not any(problems):
                problems = worker_group.execute(*look)
        finally:
            worker_group.execute(_remove_tokens, run_dir, nonce)
        for problem in filter(None, problems):
            raise ClusterError(
                f"{problem}: the run directory {run_dir} must be the same on every machine of the "
                "cluster: put state_dir on a file system that all of them share"
            )


@dataclass
class RankBackendConfig(BackendConfig):  # type: ignore[misc]  # as above
    """Args:
    run_dir: of the run, as every machine of the cluster must see it.
    nonce: of this launch.
    patience_s: how long a machine may take to see what another has written: NFS looks again
        after some seconds.
    """

    run_dir: str = ""
    nonce: str = ""
    patience_s: float = 60.0

    @property
    def backend_cls(self) -> type[RankBackend]:
        return RankBackend


def _write_token(run_dir: str, nonce: str) -> str:
    """What went wrong, or nothing."""
    try:
        (Path(run_dir) / f".shared-{nonce}-{uuid.uuid4().hex}").write_text(platform.node())
    except OSError as error:
        return f"{platform.node()} cannot write there: {error.strerror}"
    return ""


def _count_tokens(run_dir: str, nonce: str, num_workers: int, patience_s: float) -> str:
    """What is missing, or nothing."""
    deadline_s = time.monotonic() + patience_s
    while (found := len(list(Path(run_dir).glob(f".shared-{nonce}-*")))) != num_workers:
        if time.monotonic() > deadline_s:
            return f"{platform.node()} sees the files of {found} of {num_workers} workers there"
        time.sleep(_LOOK_AGAIN_S)
    return ""


def _remove_tokens(run_dir: str, nonce: str) -> None:
    for path in Path(run_dir).glob(f".shared-{nonce}-*"):
        path.unlink(missing_ok=True)


def describe_host() -> dict[str, str]:
    """Host name and versions of what ranks must agree on."""
    versions = {"host": platform.node(), "Python": platform.python_version()}
    for name in ("opsd", "torch", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "without a version"
    return versions


def _check_versions(hosts: list[dict[str, str]]) -> None:
    first = describe_host()  # the controller runs on the driver's machine
    for host in hosts:
        for name, version in first.items():
            if name != "host" and host[name] != version:
                raise ClusterError(
                    f"{name} is {version} on {first['host']} and {host[name]} on {host['host']}: "
                    "install the same on every machine of the cluster"
                )


def _free_address() -> tuple[str, int]:
    address = ray.util.get_node_ip_address()
    with socket.create_server((address, 0)) as listener:
        return address, listener.getsockname()[1]


def _set_rendezvous(address: str, port: int) -> None:
    os.environ["MASTER_ADDR"] = address
    os.environ["MASTER_PORT"] = str(port)
