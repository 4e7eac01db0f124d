"""Decisions can be checked without the daemon, and what was tampered with does not serve."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from live_daemon import LiveDaemon, MakeDaemon

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]


def promoted(daemon: LiveDaemon, pairs_file: Path) -> str:
    daemon.cli("pairs", "submit", str(pairs_file), "--allow-unverified")
    watched = daemon.cli("runs", "trigger", "--watch", "--reason", "e2e")
    assert watched.returncode == 7, watched.stderr + daemon.log[-4000:]
    (run,) = daemon.json("runs", "list")["runs"]
    name = str(run["candidate"])
    change = daemon.json(
        "adapters", "approve", name, "--reason", "try", "--yes", "--override-inconclusive"
    )
    assert change["incumbent"] == name
    return name


def test_decisions_are_proven_and_tampering_is_refused(
    make_daemon: MakeDaemon, pairs_file: Path, tmp_path: Path
) -> None:
    daemon = make_daemon()
    daemon.start()
    name = promoted(daemon, pairs_file)
    kept = daemon.cli("audit", "head").stdout.strip()
    key = tmp_path / "key.pem"
    key.write_text(daemon.cli("keys", "show", "--pem").stdout)

    verified = daemon.json("audit", "verify", "--expect-head", kept)
    assert (verified["num_problems"], int(verified["signed_heads"]) > 0) == (0, True)
    log, copy = tmp_path / "log.jsonl", tmp_path / "copy"
    assert daemon.cli("audit", "export", str(log)).returncode == 0
    assert daemon.cli("adapters", "export", name, str(copy)).returncode == 0
    first = [json.loads(line) for line in log.read_text().splitlines()[:3]]
    assert [entry["action"] for entry in first] == ["suite.add", "suite.add", "daemon.start"]
    assert all("config_sha256" in json.loads(entry["detail_json"])["facts"] for entry in first)
    said = daemon.json("adapters", "verify", str(copy), "--public-key", str(key))
    detail = {
        entry["action"]: json.loads(entry["detail_json"])
        for line in log.read_text().splitlines()
        if "action" in (entry := json.loads(line))
    }
    facts = detail["adapter.promote"]["facts"]
    for digest in ("shard_sha256", "gate_report_sha256", "config_sha256", "code_sha256"):
        assert len(facts[digest]) == 64
    assert said["run"]["shard_sha256"] == facts["shard_sha256"]
    assert said["approvals"][0]["actor"] == "e2e"

    assert daemon.stop() == 0
    database = daemon.directory / "state" / "opsd.db"
    with sqlite3.connect(database) as connection:
        with pytest.raises(sqlite3.IntegrityError, match="only ever added to"):
            connection.execute("DELETE FROM audit")
        saved = connection.execute("SELECT actor FROM audit WHERE id = 2").fetchone()
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute("UPDATE audit SET actor = 'mallory' WHERE id = 2")
    connection.close()
    daemon.start()
    found = daemon.cli("audit", "verify", "-o", "json")
    assert found.returncode == 7
    assert [item["entry_id"] for item in json.loads(found.stdout)["problems"]] == [2]
    # Of the file written before, nothing is wrong.
    offline = daemon.cli("audit", "verify", str(log), "--public-key", str(key))
    assert offline.returncode == 0, offline.stderr
    assert daemon.stop() == 0
    with sqlite3.connect(database) as connection:
        connection.execute("UPDATE audit SET actor = ? WHERE id = 2", saved)
    connection.close()

    weights = daemon.directory / "state" / "adapters" / name / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)
    daemon.launch()
    assert daemon.process is not None
    assert daemon.process.wait(240) == 1
    last = daemon.log.strip().splitlines()[-1]
    assert f"{name} is refused" in last
    assert str(weights) in last
    assert "opsd serve --roll-back" in last
    daemon.start("--roll-back", "the disk", "--actor", "ann")
    assert daemon.json("status")["incumbent"] == "base"
    again = ("adapters", "approve", name, "--reason", "mended", "--override-inconclusive", "--yes")
    refused = daemon.cli(*again)
    assert refused.returncode != 0
    assert f"{name} is refused" in refused.stderr
    data[-1] ^= 1
    weights.write_bytes(data)
    assert daemon.json(*again)["incumbent"] == name
    assert daemon.json("audit", "verify")["num_problems"] == 0
