"""A good adapter and a harmful one, trained for real on a model that can learn, before the gate."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from live_daemon import LiveDaemon

from opsd.daemon.demo.workspace import prepare

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

SEED = 10
STEPS = 40
PAIRS = 600
# A model that has learned less than the demonstration's, and half of its suites: what is wanted and
# what is not are as plain.
PRETRAINING = 700
ITEMS = {"target": 300, "easy": 150, "symbolic": 100, "long": 100}
RUN_TIMEOUT_S = 800  # a slow machine is no failure
ENDS = ("RUN_STATE_AWAITING_APPROVAL", "RUN_STATE_REJECTED")
BROKEN = ("RUN_STATE_FAILED", "RUN_STATE_CANCELLED")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny") / "tiny"
    command = [sys.executable, "-m", "opsd.trainer.tiny", "--out", str(out), "--threads", "1"]
    subprocess.run([*command, "--seed", str(SEED), "--steps", str(PRETRAINING)], check=True)
    for name, num_items in ITEMS.items():
        suite = out / "suites" / f"{name}.jsonl"
        suite.write_text("".join(suite.read_text().splitlines(keepends=True)[:num_items]))
    return out


def run(daemon: LiveDaemon, *overrides: str) -> tuple[str, dict[str, object]]:
    """Its id and the gate's report."""
    settings = [part for override in overrides for part in ("--set", override)]
    id = str(daemon.json("runs", "trigger", "--reason", "e2e", *settings)["id"])
    deadline = time.monotonic() + RUN_TIMEOUT_S
    while True:
        details = daemon.json("runs", "get", id)
        if details["state"] in ENDS:
            break
        assert details["state"] not in BROKEN, details["error"]
        assert time.monotonic() < deadline, details["state"]
        time.sleep(1.0)
    return id, daemon.json("gate", "show", id)


def test_the_gate_passes_a_good_adapter_and_stops_a_harmful_one(tiny: Path, tmp_path: Path) -> None:
    workspace = prepare(tiny, tmp_path, seed=SEED, num_steps=STEPS, num_pairs=PAIRS, wrong=False)
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(pair) + "\n" for pair in workspace.pairs))
    daemon = LiveDaemon(tmp_path)
    try:
        daemon.start()
        assert daemon.cli("pairs", "submit", str(pairs)).returncode == 0
        good, passed = run(daemon)
        harmful, failed = run(
            # The references are keys for the teacher. Imitated word for word they unlearn the way.
            daemon,
            "objective.method=sft",
            "optim.num_steps=15",
        )
        assert passed["verdict"] == "GATE_VERDICT_PASS", passed["explanation"]
        assert str(passed["explanation"]).startswith("pass: 1 target suite improved, 3 guard")
        assert daemon.json("runs", "get", good)["state"] == "RUN_STATE_AWAITING_APPROVAL"

        assert failed["verdict"] == "GATE_VERDICT_FAIL", failed["explanation"]
        said = str(failed["explanation"])
        assert "a loss is proven" in said
        assert "easy: " in said
        assert "a loss of more than 8 points is proven: worse" in said
        assert "length: tokens an answer" in said
        details = daemon.json("runs", "get", harmful)
        assert details["state"] == "RUN_STATE_REJECTED"
        refused = daemon.cli(
            *("adapters", "approve", details["candidate"], "--reason", "I like it", "--yes"),
            "--override-inconclusive",
        )
        assert refused.returncode == 5, refused.stdout
        assert daemon.json("status")["incumbent"] == "base"

        for number, report in ((1, passed), (2, failed)):
            target = next(suite for suite in report["suites"] if suite["name"] == "target")  # type: ignore[attr-defined]
            assert target["gate_number"] == number
        for id in (good, harmful):
            replayed = daemon.cli("gate", "replay", id)
            assert replayed.returncode == 0, replayed.stdout
        assert daemon.cli("audit", "verify").returncode == 0
        assert daemon.stop() == 0
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
