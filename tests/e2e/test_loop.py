"""The loop through the front door: serve, submit, train, gate, approve, restart, roll back."""

from __future__ import annotations

import json
import time
import urllib.request
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, MakeDaemon

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def incumbent(daemon: LiveDaemon) -> str:
    return str(daemon.json("status").get("incumbent", ""))


def serving_adapter(daemon: LiveDaemon) -> str:
    reply = daemon.json("generate", "What is 2 plus 2?", "--max-tokens", "4")
    return str(reply["adapter"])


def test_whole_loop_and_a_kill_while_the_promoted_adapter_serves(
    make_daemon: MakeDaemon, pairs_file: Path
) -> None:
    daemon = make_daemon()
    daemon.start()
    assert serving_adapter(daemon) == "base"

    submitted = daemon.cli("pairs", "submit", str(pairs_file), "--allow-unverified")
    assert submitted.returncode == 0, submitted.stderr
    refused = daemon.cli("pairs", "submit", str(pairs_file))
    assert refused.returncode != 0, "an unverified pair must show in the exit status"
    status = daemon.json("status")
    assert (int(status["pairs"]["verified"]), int(status["pairs"]["unverified"])) == (8, 1)

    # An untrained model solves nothing, before and after: the gate cannot know, and says so.
    watched = daemon.cli("runs", "trigger", "--watch", "--reason", "e2e")
    assert watched.returncode == 7, watched.stderr + daemon.log[-4000:]
    (run,) = daemon.json("runs", "list")["runs"]
    assert run["state"] == "RUN_STATE_AWAITING_APPROVAL", run
    assert run["gate_verdict"] == "GATE_VERDICT_INCONCLUSIVE"
    report = daemon.json("gate", "show", run["id"])
    assert {suite["name"] for suite in report["suites"]} == {"sums", "manners"}
    name = run["candidate"]
    details = daemon.json("runs", "get", run["id"])
    states = [step["state"].removeprefix("RUN_STATE_").lower() for step in details["history"]]
    assert states == ["queued", "preparing", "training", "evaluating", "awaiting_approval"]
    assert details["num_pairs"] == 8

    plain = daemon.cli("adapters", "approve", name, "--reason", "try", "--yes")
    assert plain.returncode == 5, plain.stderr
    assert "inconclusive" in plain.stderr
    change = daemon.json(
        "adapters", "approve", name, "--reason", "try", "--yes", "--override-inconclusive"
    )
    assert change["incumbent"] == name
    assert serving_adapter(daemon) == name
    metrics = urllib.request.urlopen(
        f"http://{daemon.endpoints()['metrics_address']}/metrics", timeout=10
    ).read()
    assert b"opsd_requests_total" in metrics
    assert b"vllm:" in metrics

    daemon.kill()
    daemon.start()
    assert incumbent(daemon) == name
    assert serving_adapter(daemon) == name

    back = daemon.json("adapters", "rollback", "--reason", "second thoughts", "--yes")
    assert back["incumbent"] == "base"
    assert serving_adapter(daemon) == "base"
    forward = daemon.json(
        "adapters", "approve", name, "--reason", "third", "--yes", "--override-inconclusive"
    )
    assert (forward["incumbent"], int(forward["epoch"])) == (name, 3)
    entries = daemon.json("audit", "list")["entries"]
    changes = [entry["action"] for entry in entries if entry["action"].startswith("adapter.")]
    assert changes == ["adapter.promote", "adapter.rollback", "adapter.promote"]
    assert daemon.stop() == 0
    assert not (daemon.directory / "state" / "daemon.json").exists()


def test_daemon_killed_in_the_middle_of_a_run_picks_it_up_again(
    make_daemon: MakeDaemon, pairs_file: Path
) -> None:
    daemon = make_daemon(OPSD_TRAINER_FAILPOINT="hang-at-step:1")
    daemon.start()
    daemon.cli("pairs", "submit", str(pairs_file), "--allow-unverified")
    run = daemon.json("runs", "trigger", "--reason", "e2e")
    wait_for_step(daemon, run["id"], 1)
    daemon.kill()
    daemon.start()
    details = daemon.json("runs", "get", run["id"])
    assert details["state"] == "RUN_STATE_TRAINING", "the hanging trainer was adopted, not lost"
    cancelled = daemon.json("runs", "cancel", run["id"], "--reason", "it hangs")
    assert cancelled["state"] == "RUN_STATE_CANCELLED"
    assert daemon.json("status").get("pool_holder", "") == ""
    assert serving_adapter(daemon) == "base"


@pytest.mark.parametrize(
    ("failpoint", "reason"),
    [("nan-at-step:1", "step"), ("corrupt-adapter", "digest"), ("garbage-result", "result.json")],
)
def test_a_broken_trainer_fails_the_run_and_serving_never_notices(
    make_daemon: MakeDaemon, pairs_file: Path, failpoint: str, reason: str
) -> None:
    daemon = make_daemon(OPSD_TRAINER_FAILPOINT=failpoint)
    daemon.start()
    daemon.cli("pairs", "submit", str(pairs_file), "--allow-unverified")
    watched = daemon.cli("runs", "trigger", "--watch", "--reason", "e2e")
    assert watched.returncode == 7, watched.stderr
    (run,) = daemon.json("runs", "list")["runs"]
    details = daemon.json("runs", "get", run["id"])
    assert details["state"] == "RUN_STATE_FAILED"
    assert reason in details["error"]
    assert not daemon.json("adapters", "list").get("adapters")
    assert serving_adapter(daemon) == "base"


def wait_for_step(daemon: LiveDaemon, run_id: str, step: int) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        details = json.loads(daemon.cli("runs", "get", run_id, "-o", "json").stdout)
        assert details["state"] not in {"RUN_STATE_FAILED", "RUN_STATE_CANCELLED"}, details
        if int(details.get("step", 0)) >= step:
            return
        time.sleep(0.5)
    pytest.fail(f"run {run_id} did not reach step {step}:\n{daemon.log[-4000:]}")
