"""Which code decided, and that the log's head is signed when it should be."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsd.daemon.app.code_version import code_sha256, commit
from opsd.daemon.app.evidence import AuditKeeper, gather_evidence
from opsd.daemon.config.digest import config_sha256, public_config
from opsd.daemon.config.schema import OpsdConfig, StoreConfig
from opsd.daemon.config.signing import SigningConfig
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.audit import canonical_json, sha256_hex


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


async def test_start_and_stop_are_entries_under_a_signed_head(
    store: SqlStore, tmp_path: Path
) -> None:
    config = OpsdConfig(state_dir=tmp_path)
    evidence = gather_evidence(config, "f" * 64, store)
    keeper = AuditKeeper(store, evidence.heads, config)
    await keeper.start()
    assert evidence.heads.newest() == store.audit_head()
    await keeper.stop()
    await keeper.stop()
    (entries,) = store.audit_entries()
    assert [entry.action for entry in entries] == ["daemon.start", "daemon.stop"]
    assert evidence.heads.newest() == store.audit_head()
    detail = json.loads(entries[0].detail_json)
    assert detail["config"] == public_config(config)
    facts = detail["facts"]
    assert facts["config_sha256"] == sha256_hex(canonical_json(detail["config"]))
    assert facts["base_fingerprint"] == "f" * 64
    assert facts["code_sha256"] == code_sha256()
    assert facts["version"]


async def test_what_serves_has_changed_and_the_head_is_signed(
    store: SqlStore, tmp_path: Path
) -> None:
    config = OpsdConfig(state_dir=tmp_path, signing=SigningConfig(head_every_s=9999.0))
    evidence = gather_evidence(config, "f", store)
    keeper = AuditKeeper(store, evidence.heads, config)
    await keeper.start()
    store.add_audit(actor="a", action="x", subject="s", reason="r")
    keeper.wake()

    def wait() -> None:
        deadline_s = time.monotonic() + 30
        while evidence.heads.newest().id != 2 and time.monotonic() < deadline_s:
            time.sleep(0.01)

    await asyncio.to_thread(wait)
    assert evidence.heads.newest().id == 2
    await keeper.stop()


async def test_a_log_cut_short_is_complained_of_at_the_start(
    store: SqlStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = OpsdConfig(state_dir=tmp_path)
    evidence = gather_evidence(config, "f", store)
    first = AuditKeeper(store, evidence.heads, config)
    await first.start()
    await first.stop()
    kept = evidence.heads.newest()
    store._database.write(
        lambda connection: [
            connection.exec_driver_sql(line)
            for line in (
                "DROP TRIGGER audit_no_delete",
                "DELETE FROM audit WHERE id = 2",
                "UPDATE audit_head SET entry_id = 1,"
                " entry_sha256 = (SELECT entry_sha256 FROM audit WHERE id = 1)",
            )
        ]
    )
    second = AuditKeeper(store, evidence.heads, config)
    with caplog.at_level(logging.ERROR):
        await second.start()
        await second.stop()
    assert "entry 2: is missing" in caplog.text
    assert evidence.heads.newest() == kept


def test_the_commit_is_the_one_that_was_built(tmp_path: Path) -> None:
    (tmp_path / "commit.txt").write_text("a" * 40 + "\n")
    assert commit(tmp_path) == "a" * 40


def test_the_commit_of_a_checkout_says_when_it_was_changed(tmp_path: Path) -> None:
    package = tmp_path / "daemon" / "opsd" / "daemon"
    package.mkdir(parents=True)
    (tmp_path / "proto" / "opsd").mkdir(parents=True)
    source = package / "x.py"
    source.write_text("x = 1\n")

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "one")
    head = git("rev-parse", "HEAD")
    assert commit(package) == head
    before = code_sha256(package)
    source.write_text("x = 2\n")
    assert commit(package) == f"{head}+changes"
    assert code_sha256(package) != before


def test_somebody_elses_checkout_is_not_asked(tmp_path: Path) -> None:
    package = tmp_path / "site" / "opsd" / "daemon"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert len(commit(package)) in (0, 40)
    assert "+changes" not in commit(package)


def test_secrets_are_in_no_digest() -> None:
    one = OpsdConfig(store=StoreConfig(url="postgresql://u:one@h/d"))
    other = OpsdConfig(store=StoreConfig(url="postgresql://u:other@h/d"))
    assert config_sha256(one) == config_sha256(other)
    assert "one" not in canonical_json(public_config(one)["store"])
    assert config_sha256(one) != config_sha256(OpsdConfig())
    # A number whose name ends like a secret's is none.
    assert public_config(one)["gate"]["max_tokens"] == OpsdConfig().gate.max_tokens
