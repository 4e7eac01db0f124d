"""A comparison through the front door: two methods, every exported adapter through the engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, MakeDaemon

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def test_two_methods_on_the_same_data_and_nothing_that_serves_changes(
    make_daemon: MakeDaemon, pairs_file: Path
) -> None:
    daemon = make_daemon()
    daemon.start()
    assert daemon.cli("pairs", "submit", str(pairs_file), "--allow-unverified").returncode == 0
    # An untrained teacher reads nothing, and its check would say so.
    unchecked = "[training]\nteacher_check.num_problems = 0\n"
    write(daemon, "forward.toml", unchecked)
    write(daemon, "reverse.toml", f'{unchecked}objective.divergence = "reverse_kl"\n')
    specs = [str(daemon.directory / name) for name in ("forward.toml", "reverse.toml")]
    out = daemon.directory / "comparison"
    compared = daemon.cli("compare", *specs, "--seeds", "5", "--out", str(out))
    assert compared.returncode == 0, compared.stderr + daemon.log[-4000:]

    results = json.loads((out / "results.json").read_text())
    assert [run["method"] for run in results["runs"]] == ["forward", "reverse"]
    for run in results["runs"]:
        assert run["state"] == "rejected"
        assert [point["step"] for point in run["curve"]] == [0, 1, 2, 3]
        tokens = [point["generated_tokens"] for point in run["curve"]]
        assert tokens == sorted(tokens)
        assert tokens[0] == 0 < tokens[1]
        assert 0 < run["curve"][1]["train_s"] <= run["train_s"]
        assert {point["n"] for point in run["curve"]} == {6}
        details = daemon.json("runs", "get", run["run_id"])
        assert details["reason"].startswith("measured only; gate: ")
    shards = {path.read_bytes() for path in daemon.directory.glob("state/runs/*/shard.jsonl")}
    assert len(shards) == 1
    assert "forward" in (out / "table.md").read_text()

    status = daemon.json("status")
    assert status["incumbent"] == "base"
    assert not status["loaded"]
    adapters = daemon.json("adapters", "list")["adapters"]
    assert [adapter["state"] for adapter in adapters] == ["ADAPTER_STATE_REJECTED"] * 2
    assert list(daemon.directory.glob("state/trials/*")) == []
    assert daemon.stop() == 0


def write(daemon: LiveDaemon, name: str, text: str) -> None:
    (daemon.directory / name).write_text(text)
