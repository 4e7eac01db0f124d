"""`opsd audit` and `opsd adapters verify` where no daemon is asked, and the calls where one is."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from opsd.daemon.cli.exits import Exit
from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import GENESIS, Head, entry_sha256, entry_to_json
from opsd.daemon.types.manifest import ADAPTER_FILES, MANIFEST_NAME, read_contents
from opsd.daemon.types.signatures import HEAD_TYPE, MANIFEST_TYPE, PublicKey, seal
from opsd.v1 import admin_pb2 as pb


class Key:
    def __init__(self) -> None:
        self.private = Ed25519PrivateKey.generate()

    @property
    def public_key(self) -> PublicKey:
        return PublicKey(self.private.public_key().public_bytes_raw())

    def sign(self, data: bytes) -> bytes:
        return self.private.sign(data)


KEY = Key()


def a_log(length: int = 8) -> list[AuditEntry]:
    log, before = [], GENESIS
    for number in range(1, length + 1):
        entry = AuditEntry(number, 1e9 + number / 3, "ana", "x", f"s {number}", "ü\u2028", "{}")
        entry = replace(entry, prev_sha256=before)
        entry = replace(entry, entry_sha256=entry_sha256(entry))
        log.append(entry)
        before = entry.entry_sha256
    return log


LOG = a_log()


def head(entry: AuditEntry, key: Key = KEY) -> str:
    statement = {"id": entry.id, "sha256": entry.entry_sha256, "time_unix_s": 1.0}
    return seal(HEAD_TYPE, statement, key)


def batches(log: list[AuditEntry], *heads: str) -> list[pb.AuditBatch]:
    entries = [pb.AuditEntry(**entry_to_json(entry)) for entry in log]
    return [
        pb.AuditBatch(entries=entries[:3]),
        pb.AuditBatch(entries=entries[3:]),
        *(pb.AuditBatch(heads=[envelope]) for envelope in heads),
    ]


@pytest.fixture
def export(opsd: Any, daemon: Any, tmp_path: Path) -> Callable[..., Path]:
    """Has `opsd audit export` write what a daemon streams."""

    def make(log: list[AuditEntry], *heads: str) -> Path:
        daemon.fake.exported = batches(log, *heads)
        path = tmp_path / "log.jsonl"
        result = opsd("audit", "export", str(path), "--force")
        assert result.code == 0, result.err
        return path

    return make


def test_an_export_verifies_without_a_daemon(opsd: Any, export: Callable[..., Path]) -> None:
    path = export(LOG, head(LOG[3]), head(LOG[-1]))
    result = opsd("audit", "verify", str(path), "--public-key", KEY.public_key.text, address="x:1")
    assert result.code == 0, result.err
    assert "8 entries verified" in result.err
    assert f"8:{LOG[-1].entry_sha256}" in result.out
    found = opsd("audit", "verify", str(path), "-o", "json", address="x:1")
    assert found.json["num_problems"] == 0
    assert "signatures were not checked" in found.err


def test_a_key_in_a_file_will_do(opsd: Any, export: Callable[..., Path], tmp_path: Path) -> None:
    pem = tmp_path / "key.pem"
    pem.write_text(KEY.public_key.pem)
    path = export(LOG, head(LOG[-1]))
    assert opsd("audit", "verify", str(path), "--public-key", str(pem)).code == 0
    pem.write_text("nothing")
    assert opsd("audit", "verify", str(path), "--public-key", str(pem)).code == Exit.INVALID_INPUT
    missing = opsd("audit", "verify", str(path), "--public-key", str(tmp_path / "no"))
    assert missing.code == Exit.NOT_FOUND


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (lambda lines: [lines[0].replace("ana", "eve"), *lines[1:]], "was edited"),
        (lambda lines: lines[:2] + lines[3:], "entry 3 is missing"),
        (lambda lines: lines[1:], "the entries before it are missing"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "out of order"),
        (lambda lines: lines[:7] + lines[8:], "the log ends at 7, entry 8 is deleted"),
        (lambda lines: lines[:8], "no head that a trusted key signed covers them"),
        (lambda lines: [*lines[:3], "{}", *lines[3:]], "line 4 is no entry"),
        (lambda lines: [*lines[:3], "[" * 9, *lines[3:]], "line 4 is no entry"),
        (lambda lines: [*lines[:3], "7", *lines[3:]], "line 4 is no entry"),
        (lambda lines: [*lines, '{"head":{}}'], "line 10: a head that does not count"),
        (lambda lines: [*lines, '{"head":7'], "line 10: a head that does not count"),
    ],
)
def test_a_tampered_export_is_found_out(
    opsd: Any, export: Callable[..., Path], tamper: Any, words: str
) -> None:
    path = export(LOG, head(LOG[-1]))
    path.write_text("\n".join(tamper(path.read_text().splitlines())) + "\n")
    result = opsd("audit", "verify", str(path), "--public-key", KEY.public_key.text)
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert words in result.out
    assert "does not verify" in result.err


def test_a_log_forged_as_a_whole_fails_at_the_key_or_the_kept_head(
    opsd: Any, export: Callable[..., Path]
) -> None:
    forged = a_log(5)
    mallory = Key()
    path = export(forged, head(forged[-1], mallory))
    assert opsd("audit", "verify", str(path)).code == 0
    result = opsd("audit", "verify", str(path), "--public-key", KEY.public_key.text)
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "not by a trusted key" in result.out
    kept = str(Head(8, LOG[-1].entry_sha256))
    assert opsd("audit", "verify", str(path), "--expect-head", kept).code == Exit.NEGATIVE_OUTCOME
    assert opsd("audit", "verify", str(path), "--expect-head", "x").code == Exit.USAGE


def test_a_file_that_is_not_there_is_named(opsd: Any, tmp_path: Path) -> None:
    result = opsd("audit", "verify", str(tmp_path / "no"))
    assert (result.code, "no" in result.err) == (Exit.NOT_FOUND, True)


def test_an_export_is_not_overwritten(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("mine")
    daemon.fake.exported = batches(LOG)
    assert opsd("audit", "export", str(path)).code == Exit.REFUSED
    assert path.read_text() == "mine"


def test_the_daemon_checks_its_own_log(opsd: Any, daemon: Any) -> None:
    daemon.fake.progress = [
        pb.AuditProgress(checked=5, total=8),
        pb.AuditProgress(checked=8, total=8, done=True, head_id=8, head_sha256="a" * 64),
    ]
    kept = str(Head(3, "b" * 64))
    assert opsd("audit", "verify", "--expect-head", kept).code == 0
    assert daemon.fake.last("VerifyAudit").expected_head == kept
    problem = pb.AuditProblem(entry_id=4, message="was edited\x1b[2J")
    daemon.fake.progress[1].problems.append(problem)
    daemon.fake.progress[1].num_problems = 1
    result = opsd("audit", "verify")
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "4  was edited" in result.out
    assert "\x1b" not in result.out
    daemon.fake.progress = daemon.fake.progress[:1]
    assert opsd("audit", "verify").code == Exit.ERROR
    assert opsd("audit", "verify", "--public-key", KEY.public_key.text).code == Exit.USAGE


def test_the_head_is_printed_to_be_kept(opsd: Any, daemon: Any) -> None:
    daemon.fake.head = pb.AuditHead(id=8, sha256="c" * 64)
    assert opsd("audit", "head").out == f"8:{'c' * 64}\n"
    daemon.fake.head.problem = "entry 3: was edited"
    result = opsd("audit", "head")
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "entry 3: was edited" in result.err


def test_keys_are_shown(opsd: Any, daemon: Any) -> None:
    key = pb.SigningKey(id=KEY.public_key.id, text=KEY.public_key.text, pem=KEY.public_key.pem)
    daemon.fake.keys = pb.SigningKeys(own=key, trusted=[key])
    assert KEY.public_key.text in opsd("keys", "show").out
    assert opsd("keys", "show", "--pem").out == KEY.public_key.pem


@pytest.fixture
def exported_adapter(opsd: Any, daemon: Any, tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name in ADAPTER_FILES:
        (source / name).write_text(f"bytes of {name}")
    contents = read_contents(source)
    statement = {
        "adapter": {"name": "opsd-x", "sha256": contents.sha256, "files": contents.to_json()},
        "approvals": [{"actor": "ana", "reason": "good", "time_unix_s": 1.7e9}],
        "audit": {"id": 4, "sha256": "d" * 64},
    }
    pieces = [
        pb.FilePiece(file=MANIFEST_NAME, data=seal(MANIFEST_TYPE, statement, KEY).encode()),
        pb.FilePiece(file="public_key.pem", data=KEY.public_key.pem.encode()),
    ]
    for name in ADAPTER_FILES:
        data = (source / name).read_bytes()
        pieces += [pb.FilePiece(file=name, data=part) for part in (data[:4], data[4:])]
    daemon.fake.pieces = pieces
    target = tmp_path / "copy"
    result = opsd("adapters", "export", "opsd-x", str(target))
    assert result.code == 0, result.err
    return target


def test_an_exported_adapter_verifies(opsd: Any, exported_adapter: Path) -> None:
    result = opsd("adapters", "verify", str(exported_adapter), "--public-key", KEY.public_key.text)
    assert result.code == 0, result.err
    assert "ana, 2023-11-14 22:13:20Z: good" in result.out
    assert f"4:{'d' * 64}" in result.out
    assert opsd("adapters", "export", "opsd-x", str(exported_adapter)).code == Exit.REFUSED
    assert opsd("adapters", "verify", str(exported_adapter)).code == Exit.USAGE


@pytest.mark.parametrize("name", [*ADAPTER_FILES, MANIFEST_NAME])
def test_one_changed_byte_of_an_exported_adapter_is_found(
    opsd: Any, exported_adapter: Path, name: str
) -> None:
    path = exported_adapter / name
    data = bytearray(path.read_bytes())
    data[40 if name == MANIFEST_NAME else 0] ^= 1
    path.write_bytes(data)
    key = KEY.public_key.text
    result = opsd("adapters", "verify", str(exported_adapter), "--public-key", key)
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert name in result.err


def test_a_foreign_key_or_file_is_refused(opsd: Any, exported_adapter: Path) -> None:
    result = opsd(
        "adapters", "verify", str(exported_adapter), "--public-key", Key().public_key.text
    )
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "not by a trusted key" in result.err
    (exported_adapter / "pytorch_model.bin").write_text("x")
    result = opsd("adapters", "verify", str(exported_adapter), "--public-key", KEY.public_key.text)
    assert result.code == Exit.NEGATIVE_OUTCOME
    assert "pytorch_model.bin" in result.err


def test_a_daemon_cannot_write_elsewhere(opsd: Any, daemon: Any, tmp_path: Path) -> None:
    daemon.fake.pieces = [pb.FilePiece(file="../evil", data=b"x")]
    result = opsd("adapters", "export", "opsd-x", str(tmp_path / "copy"))
    assert result.code == Exit.ERROR
    assert sorted(entry.name for entry in tmp_path.iterdir()) == []


def test_json_lines_are_what_the_page_says(export: Callable[..., Path]) -> None:
    lines = export(LOG, head(LOG[-1])).read_text().splitlines()
    assert len(lines) == 9
    assert list(json.loads(lines[0])) == [
        *("id", "time_unix_s", "actor", "action", "subject", "reason", "detail_json"),
        *("prev_sha256", "entry_sha256"),
    ]
    assert set(json.loads(lines[8])["head"]) == {"payload", "payloadType", "signatures"}
