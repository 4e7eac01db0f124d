"""What the daemon says about its own log and adapters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from opsd.daemon.adapters.files import content_digest
from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.adapters.signing import load_or_create_key
from opsd.daemon.admin.audit import AuditCalls, AuditDoor
from opsd.daemon.errors import AdapterError, InvalidInputError, StateError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.heads import HeadKeeper
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.audit import Head
from opsd.daemon.types.signatures import ring
from opsd.v1 import admin_pb2 as pb


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = open_store(sqlite_url(root))
        key = load_or_create_key(root / "key.pem")
        keys = ring([key.public_key])
        manifests = Manifests(root / "adapters", key, keys, self.store)
        self.store.set_witness(manifests)
        heads = HeadKeeper(root / "heads.jsonl", key, keys, self.store)
        self.door = AuditDoor(self.store, key, manifests, heads)

    def promote(self, text: str) -> Adapter:
        directory = self.root / "adapters" / text
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text("{}")
        (directory / "adapter_model.safetensors").write_text(text)
        sha256 = content_digest(directory)
        name, state = f"opsd-{sha256[:16]}", AdapterState.CANDIDATE
        adapter = self.store.add_adapter(
            Adapter(name, sha256, 0, state, "-", str(directory), 8, 8.0, 1, "f", 1.0)
        )
        epoch = self.store.get_incumbent().epoch
        self.store.promote(name, expected_epoch=epoch, actor="ana", reason="r")
        return adapter

    def verify(self, expected: Head | None = None) -> pb.AuditProgress:
        *_, last = self.door.verify(expected)
        assert last.done
        assert last.num_problems == len(last.problems)
        return last

    def sql(self, *statements: str) -> None:
        self.store._database.write(
            lambda connection: [connection.exec_driver_sql(line) for line in statements]
        )


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_a_whole_log_verifies(bench: Bench) -> None:
    assert bench.verify().checked == 0
    bench.promote("a")
    bench.door.head()
    bench.promote("b")
    bench.store.rollback(expected_epoch=2, actor="ana", reason="r")
    last = bench.verify(bench.store.audit_head())
    assert list(last.problems) == []
    assert (last.checked, last.total, last.signed_heads, last.head_id) == (3, 3, 1, 3)


def test_an_incumbent_that_no_entry_tells_of_is_found(bench: Bench) -> None:
    one, other = bench.promote("a"), bench.promote("b")
    bench.sql(f"UPDATE incumbent SET adapter = '{one.name}'")
    (problem,) = bench.verify().problems
    assert f"{one.name} serves (epoch 2), but the entry of that epoch says {other.name}" in (
        problem.message
    )
    bench.sql("UPDATE incumbent SET epoch = 9")
    (problem,) = bench.verify().problems
    assert "no entry tells of the change" in problem.message


def test_signed_heads_and_the_expected_one_are_compared(bench: Bench) -> None:
    bench.promote("a")
    bench.promote("b")
    kept = bench.door.head()
    assert (kept.id, kept.problem) == (2, "")
    assert "payload" in kept.envelope
    bench.sql(
        "DROP TRIGGER audit_no_delete",
        "DELETE FROM audit WHERE id = 2",
        "UPDATE audit_head SET entry_id = 1,"
        " entry_sha256 = (SELECT entry_sha256 FROM audit WHERE id = 1)",
        "UPDATE incumbent SET epoch = 1, adapter = (SELECT subject FROM audit WHERE id = 1)",
    )
    (problem,) = bench.verify().problems
    assert (problem.entry_id, "deleted" in problem.message) == (2, True)
    assert "is missing" in bench.door.head().problem
    bench.door.heads.path.unlink()
    assert bench.verify().num_problems == 0
    assert bench.verify(Head(kept.id, kept.sha256)).num_problems == 1


def test_an_entry_behind_the_end_is_found(bench: Bench) -> None:
    bench.promote("a")
    bench.promote("b")
    bench.sql(
        "UPDATE audit_head SET entry_id = 1,"
        " entry_sha256 = (SELECT entry_sha256 FROM audit WHERE id = 1)",
    )
    (problem,) = bench.verify().problems
    assert "it was inserted" in problem.message


def test_a_forged_line_among_the_signed_heads_is_found(bench: Bench) -> None:
    bench.promote("a")
    bench.door.head()
    with bench.door.heads.path.open("a") as file:
        file.write("{}\n")
    (problem,) = bench.verify().problems
    assert "line 2: not a signed envelope" in problem.message


def test_an_export_holds_entries_and_heads(bench: Bench) -> None:
    bench.promote("a")
    bench.promote("b")
    batches = list(bench.door.export_log())
    assert [entry.id for batch in batches for entry in batch.entries] == [1, 2]
    assert len([head for batch in batches for head in batch.heads]) == 1


def test_an_adapter_is_exported_with_its_manifest_or_not_at_all(bench: Bench) -> None:
    adapter = bench.promote("a")
    pieces = bench.door.export_adapter(adapter.name[:10])
    files = {
        name: b"".join(piece.data for piece in some)
        for name, some in itertools.groupby(pieces, lambda piece: piece.file)
    }
    assert list(files) == [
        *("promotion.dsse.json", "public_key.pem"),
        *("adapter_config.json", "adapter_model.safetensors"),
    ]
    assert files["adapter_model.safetensors"] == b"a"
    (Path(adapter.path) / "adapter_model.safetensors").write_text("x")
    with pytest.raises(AdapterError, match="is refused"):
        list(bench.door.export_adapter(adapter.name))
    bench.store.add_adapter(
        Adapter("opsd-never", "e" * 64, 0, adapter.state, "-", "/", 8, 8.0, 1, "f", 1.0)
    )
    with pytest.raises(StateError, match="never promoted"):
        list(bench.door.export_adapter("opsd-never"))


async def test_a_malformed_head_is_refused(bench: Bench) -> None:
    calls = AuditCalls(bench.door)
    context = None
    with pytest.raises(InvalidInputError, match="expected_head"):
        async for _ in calls.VerifyAudit(
            pb.VerifyAuditRequest(expected_head="x"),
            context,  # type: ignore[arg-type]
        ):
            pass
    with pytest.raises(InvalidInputError, match="name"):
        async for _ in calls.ExportAdapter(
            pb.ExportAdapterRequest(),
            context,  # type: ignore[arg-type]
        ):
            pass
