"""kill -9 in the middle of a canary: the daemon goes on at the same step with what it knew."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from live_daemon import LiveDaemon, MakeDaemon
from random_adapters import LORA_RANK, write_random_adapter

from opsd.daemon.adapters.canary import SAVE_EVERY_S
from opsd.daemon.adapters.files import content_digest, model_fingerprint
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.failpoints import VARIABLE
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.gate import GateReport, GateVerdict
from opsd.v1 import inference_pb2 as pb
from opsd.v1 import inference_pb2_grpc

pytestmark = [pytest.mark.engine, pytest.mark.slow]

PROMOTION = """
[promotion]
approvals_required = 2
steps = [0.3, 0.6, 1.0]
mode = "manual"
[promotion.compare]
# Of two tokens on a busy processor, an adapter's own time is a large part; it is not judged here.
latency_factor = 10.0
"""
PATIENCE_S = 120


def add_candidate(daemon: LiveDaemon, model: Path) -> str:
    """An adapter that has been through the gate, as a daemon before left it."""
    state = daemon.directory / "state"
    made = state / "made"
    made.mkdir(parents=True)
    write_random_adapter(model, made, 5)
    sha256 = content_digest(made)
    name = f"opsd-{sha256[:16]}"
    directory = state / "adapters" / name
    directory.parent.mkdir()
    made.rename(directory)
    store = open_store(sqlite_url(state))
    store.add_adapter(
        Adapter(
            name=name,
            sha256=sha256,
            lora_id=0,
            state=AdapterState.CANDIDATE,
            run_id="-",
            path=str(directory),
            rank=LORA_RANK,
            alpha=float(LORA_RANK),
            size_bytes=1,
            model_fingerprint=model_fingerprint(model),
            created_unix_s=time.time(),
        )
    )
    store.save_gate(GateReport("-", name, "base", GateVerdict.PASS, "fine.", (), 0.0, time.time()))
    store.close()
    return name


class Users:
    """Four streams that ask all the time, whatever comes back."""

    def __init__(self, address: str) -> None:
        self.answers: list[str] = []
        self.codes: set[grpc.StatusCode] = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(address,)) for _ in range(4)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, address: str) -> None:
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            request = pb.GenerateRequest(
                prompt="Tom has 61 apples", sampling=pb.SamplingParams(max_tokens=2)
            )
            while not self._stop.is_set():
                try:
                    chunks = list(stub.GenerateStream(request, timeout=60))
                except grpc.RpcError as error:
                    self.codes.add(error.code())  # type: ignore[attr-defined]
                    self._stop.wait(0.05)
                    continue
                self.answers.append(chunks[-1].adapter)


def wait_for(condition: Callable[[], bool], daemon: LiveDaemon) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, daemon.log[-4000:]
        time.sleep(0.1)


def status(daemon: LiveDaemon) -> Any:
    return daemon.json("adapters", "canary", "status")


def test_a_killed_daemon_resumes_its_canary(make_daemon: MakeDaemon, micro_model: Path) -> None:
    daemon = make_daemon(**{VARIABLE: "canary-advance-after-commit"})
    with (daemon.directory / "opsd.toml").open("a") as config:
        config.write(PROMOTION)
    name = add_candidate(daemon, micro_model)
    daemon.start()
    first = daemon.cli("--actor", "ann", "adapters", "approve", name, "--reason", "r", "--yes")
    assert first.returncode == 0, first.stderr
    assert "1 of 2" in first.stdout
    (pending,) = daemon.json("adapters", "pending")["candidates"]
    assert pending["votes"][0]["actor"] == "ann"
    again = daemon.cli("--actor", "Ann", "adapters", "approve", name, "--reason", "r", "--yes")
    assert "a vote is final" in again.stderr
    second = daemon.cli("--actor", "ben", "adapters", "approve", name, "--reason", "r", "--yes")
    assert second.returncode == 0, second.stderr
    salted = status(daemon)
    assert (salted["step"], salted["end"]) == (1, "running")

    # It dies in the moment in which the second step is committed.
    with Users(daemon.address) as users:
        wait_for(lambda: len(users.answers) > 60, daemon)
        time.sleep(2 * SAVE_EVERY_S)
        died = daemon.cli("adapters", "canary", "advance", "--reason", "go on", "--yes")
    assert died.returncode != 0
    assert daemon.process is not None
    assert daemon.process.wait(60) == -9

    daemon.environment = {}
    daemon.start()
    resumed = status(daemon)
    assert (resumed["step"], resumed["end"], observed(resumed)[0] > 0) == (2, "running", True)
    assert daemon.json("status")["canary_share"] == 0.6

    # And again in the middle of that step.
    with Users(daemon.address) as users:
        wait_for(lambda: len(users.answers) > 60, daemon)
        time.sleep(2 * SAVE_EVERY_S)
        before = status(daemon)
        time.sleep(2 * SAVE_EVERY_S)
        daemon.kill()
    daemon.start()
    after = status(daemon)
    assert after["step"] == 2
    assert all(now >= then > 0 for now, then in zip(observed(after), observed(before), strict=True))

    with Users(daemon.address) as users:
        done = daemon.cli("adapters", "canary", "advance", "--reason", "all of it", "--yes")
        assert done.returncode == 0, done.stderr
        wait_for(lambda: users.answers[-8:] == [name] * 8, daemon)
    assert users.codes == set()
    assert status(daemon)["end"] == "promoted"
    assert daemon.json("status")["incumbent"] == name
    assert daemon.stop() == 0


def observed(shown: Any) -> tuple[int, int]:
    """Replies compared, of canary and incumbent."""
    (length,) = (metric for metric in shown["metrics"] if metric["name"] == "length")
    return length["canary_n"], length["incumbent_n"]
