"""`python -m opsd.trainer.launch.ray_driver [OPTIONS] RUN_DIR/run.json`: ranks on a Ray cluster.

The counterpart of torchrun's agent, on a machine of the cluster: it reserves the pool, has Ray
Train start a worker for each rank, and ends when all have ended. Exit status: 0 succeeded, 1 failed
or a rank was lost (`group.json` says which), 143 cancelled.
"""

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opsd.trainer.errors import ClusterError
from opsd.trainer.events import EventLog, to_json
from opsd.trainer.files import replace_file
from opsd.trainer.launch.ends import RankEnd, write_group_end
from opsd.trainer.main import EXIT_CANCELLED, EXIT_FAILED
from opsd.trainer.spec import load_spec, peek_output_dir
from opsd.v1 import training_pb2

_FOR_THE_RANKS = "OPSD_TRAINER_"
_LOOK_AGAIN_S = 0.2
_PROBE_S = 10.0
# Beyond the ranks' own grace: Ray Train looks at its workers once a second.
_END_S = 10.0
# Read by Ray where it is imported.
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A worker on a machine that goes away is a lost one, like any other.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


@dataclass(frozen=True)
class Pool:
    """The reserved devices.

    Args:
        address: of the cluster's head, host:port, or "auto" for the cluster of this machine.
        cpus_per_rank: CPUs in the bundle of each rank.
        resource: a custom resource that marks the reserved machines, one of it for each rank;
            empty: any machine.
        timeout_s: how long the cluster may take to have the devices.
    """

    address: str
    cpus_per_rank: int
    resource: str
    timeout_s: float

    def bundle(self, device: str) -> dict[str, float]:
        """What each rank reserves."""
        bundle = {"CPU": float(self.cpus_per_rank)}
        if device == "cuda":
            bundle["GPU"] = 1.0
        if self.resource:
            bundle[self.resource] = 1.0
        return bundle


# Read by Ray Train when it reserves the placement group.
_PLACEMENT_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"


class _Cancelled(Exception):
    pass


class Driver:
    """One group of ranks, from its reservation to its end."""

    def __init__(self, spec: training_pb2.RunSpec, run_json: Path, pool: Pool) -> None:
        self._spec = spec
        self._run_json = run_json
        self._pool = pool
        self._deadline_s = time.monotonic() + pool.timeout_s
        self._cancelled = threading.Event()
        self._group: Any = None
        self._error: BaseException | None = None

    def heed_signals(self) -> None:
        """SIGTERM and SIGINT become a request to end the ranks; for the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._cancelled.set())

    def run(self) -> int:
        """The exit status; raises ClusterError where the ranks could not be started."""
        try:
            self._connect()
            self._claim_run()
            self._await_devices()
            ends = self._train()
        except _Cancelled:
            return EXIT_CANCELLED
        if self._cancelled.is_set():
            return EXIT_CANCELLED
        if all(end.exit_status == 0 for end in ends):
            return 0
        write_group_end(Path(self._spec.output_dir), ends)
        return EXIT_FAILED

    def _connect(self) -> None:
        try:
            import ray

            from opsd.trainer.launch import ray_group
        except ImportError as error:
            raise ClusterError(
                f"pool.launcher is ray, but {error}: install opsd[ray] on every machine"
            ) from error
        try:
            _probe(self._pool.address)
            ray.init(
                address=self._pool.address,
                namespace=ray_group.NAMESPACE,
                logging_level="warning",
            )
        except (OSError, RuntimeError, ValueError) as error:
            where = "" if self._pool.address == "auto" else f" at {self._pool.address}"
            raise ClusterError(
                f"this machine is in no Ray cluster{where} ({error}): run `ray start` on it, or "
                "correct pool.ray_address"
            ) from error
        self.heed_signals()  # ray.init has put handlers of its own
        self._raise_if_cancelled()

    def _claim_run(self) -> None:
        """Makes the group's actor; its name is taken while an earlier group of the run lives."""
        import ray

        from opsd.trainer.launch import ray_group

        here = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
        actor = ray.remote(ray_group.Group).options(
            name=ray_group.group_name(self._spec.run_id), num_cpus=0, label_selector=here
        )
        while True:
            try:
                self._group = actor.remote()
                return
            except ValueError as error:
                self._raise_if_cancelled()
                if time.monotonic() > self._deadline_s:
                    raise ClusterError(
                        f"another group of run {self._spec.run_id} is at work in this cluster"
                    ) from error
            time.sleep(_LOOK_AGAIN_S)

    def _await_devices(self) -> None:
        asked = self._spec.num_processes
        bundle = self._pool.bundle(self._spec.device)
        while (have := _num_bundles(bundle)) < asked:
            self._raise_if_cancelled()
            if time.monotonic() > self._deadline_s:
                each = ", ".join(f"{amount:g} {name}" for name, amount in bundle.items())
                raise ClusterError(
                    f"the Ray cluster has room for {have} workers of {each} each, and "
                    f"pool.num_devices asks for {asked}: lower it, or add machines "
                    f"(waited pool.ray_timeout_s = {self._pool.timeout_s:g})"
                )
            time.sleep(_LOOK_AGAIN_S)

    def _train(self) -> list[RankEnd]:
        """How the ranks ended; empty when they were cancelled before they began."""
        import ray

        os.environ[_PLACEMENT_TIMEOUT] = str(max(1.0, self._deadline_s - time.monotonic()))
        fit = threading.Thread(target=self._fit, name="ray-train", daemon=True)
        fit.start()
        asked_s: float | None = None
        while fit.is_alive():
            fit.join(_LOOK_AGAIN_S)
            if not self._cancelled.is_set():
                continue
            if asked_s is None:
                asked_s = time.monotonic()
                ray.get(self._group.stop.remote())
            if not ray.get(self._group.num_started.remote()):
                raise _Cancelled
            self._check_patience(asked_s)
        ends: list[RankEnd] = ray.get(self._group.ends.remote())
        if self._error is not None:
            ends = self._lost(self._error, ends)
        return ends

    def _check_patience(self, asked_s: float) -> None:
        from opsd.trainer.launch.ray_group import GRACE_S

        if time.monotonic() - asked_s > GRACE_S + _END_S:
            raise _Cancelled

    def _fit(self) -> None:
        try:
            _fit(self._spec, self._run_json, self._pool)
        except BaseException as error:
            self._error = error

    def _lost(self, error: BaseException, ends: list[RankEnd]) -> list[RankEnd]:
        """The ends with those of the workers that Ray lost; raises what was no loss."""
        from ray.train import ControllerError, WorkerGroupError
        from ray.train.v2._internal.exceptions import (
            WorkerGroupStartupFailedError,
            WorkerGroupStartupTimeoutError,
            WorkerHealthCheckFailedError,
            WorkerHealthCheckTimeoutError,
        )

        if isinstance(error, WorkerGroupError):
            known = {end.rank for end in ends}
            lost = [
                RankEnd(rank, None)
                for rank, failure in error.worker_failures.items()
                if isinstance(failure, WorkerHealthCheckFailedError | WorkerHealthCheckTimeoutError)
            ]
            if lost:
                return ends + [end for end in lost if end.rank not in known]
        if isinstance(error, ControllerError):
            if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
                raise ClusterError(
                    f"the Ray cluster has {self._spec.num_processes} times the devices of a "
                    "process, but other work holds them (waited pool.ray_timeout_s = "
                    f"{self._pool.timeout_s:g}): end that work, or set pool.ray_resource"
                ) from error
            if isinstance(error.controller_failure, WorkerGroupStartupFailedError):
                # Ray does not say which. One that can never start is lost again, up to the limit.
                print(error.controller_failure, file=sys.stderr, flush=True)
                return [*ends, RankEnd(None, None)]
            raise _root(error.controller_failure) from error
        raise error

    def _raise_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _Cancelled


def _fit(spec: training_pb2.RunSpec, run_json: Path, pool: Pool) -> None:
    from ray.train import FailureConfig, RunConfig, ScalingConfig

    from opsd.trainer.launch import ray_group

    launch = uuid.uuid4().hex[:8]
    environment = {k: v for k, v in os.environ.items() if k.startswith(_FOR_THE_RANKS)}
    if spec.threads_per_process:
        environment["OMP_NUM_THREADS"] = str(spec.threads_per_process)
    job = ray_group.RankJob(spec.run_id, str(run_json), spec.device, environment)
    trainer = ray_group.RankTrainer(
        ray_group.run_rank,
        train_loop_config={"job": job},
        backend_config=ray_group.RankBackendConfig(run_dir=spec.output_dir, nonce=launch),
        scaling_config=ScalingConfig(
            num_workers=spec.num_processes,
            use_gpu=spec.device == "cuda",
            resources_per_worker=pool.bundle(spec.device),
        ),
        run_config=RunConfig(
            name=launch,
            storage_path=str(Path(spec.output_dir) / "ray"),
            # Whoever started the driver decides about another try.
            failure_config=FailureConfig(
                max_failures=0, controller_failure_limit=0, max_preemption_failures=0
            ),
        ),
    )
    trainer.fit()


def _probe(address: str) -> None:
    """Raises OSError or ValueError where nobody listens; Ray would try for minutes."""
    if address != "auto":
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()


def _num_bundles(bundle: dict[str, float]) -> int:
    """How many of them the cluster's machines would hold if nothing else ran on them."""
    import ray

    return sum(
        int(min(node["Resources"].get(name, 0.0) // amount for name, amount in bundle.items()))
        for node in ray.nodes()
        if node["Alive"]
    )


def _root(error: BaseException) -> BaseException:
    """The error that a worker or the controller raised, out of Ray's wrappings."""
    cause = getattr(error, "cause", None) or error.__cause__
    return _root(cause) if isinstance(cause, BaseException) else error


def main(arguments: list[str]) -> int:
    """Runs the driver; returns the exit status."""
    options = _options(arguments)
    run_json: Path = options.run_json.absolute()
    output_dir = peek_output_dir(run_json)
    (output_dir / "result.json").unlink(missing_ok=True)
    try:
        spec = load_spec(run_json)
    except BaseException as error:
        traceback.print_exc()
        return _finish(output_dir, None, f"{type(error).__name__}: {error}")
    pool = Pool(
        address=options.address,
        cpus_per_rank=options.cpus_per_rank,
        resource=options.resource,
        timeout_s=options.timeout_s,
    )
    driver = Driver(spec, run_json, pool)
    driver.heed_signals()
    try:
        status = driver.run()
    except BaseException as error:
        traceback.print_exc()
        return _finish(output_dir, spec, f"{type(error).__name__}: {error}")
    if status == EXIT_CANCELLED and not (output_dir / "result.json").exists():
        return _finish(output_dir, spec, "")
    return status


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m opsd.trainer.launch.ray_driver")
    parser.add_argument("run_json", type=Path)
    parser.add_argument("--address", default="auto")
    parser.add_argument("--cpus-per-rank", type=int, default=1)
    parser.add_argument("--resource", default="")
    parser.add_argument("--timeout-s", type=float, default=120.0)
    return parser.parse_args(arguments)


def _finish(output_dir: Path, spec: training_pb2.RunSpec | None, reason: str) -> int:
    """Tells the outcome in the place of rank 0, which never ran; without a reason: cancelled."""
    failed = bool(reason)
    result = training_pb2.RunResult(
        run_id=spec.run_id if spec else "",
        outcome=training_pb2.RUN_OUTCOME_FAILED if failed else training_pb2.RUN_OUTCOME_CANCELLED,
        error=reason,
    )
    if spec is not None:
        events = EventLog(
            output_dir / "events.jsonl", spec.optim.num_steps, spec.heartbeat_interval_s
        )
        events.write("failed", reason or "cancelled")
        events.close()
    replace_file(output_dir / "result.json", to_json(result).encode() + b"\n")
    return EXIT_FAILED if failed else EXIT_CANCELLED


if __name__ == "__main__":
    os.environ.update(_RAY_SETTINGS)
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray ends what the driver has in the cluster when its connection closes.
    os._exit(status)
