"""A promotion is signed before it is committed, and nothing else is ever loaded under its name."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opsd.daemon.adapters.files import content_digest
from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.adapters.signing import SigningKey, load_or_create_key
from opsd.daemon.errors import AdapterError, StateError, StoreError
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.decisions import Promotion
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.manifest import read_contents
from opsd.daemon.types.signatures import MANIFEST_TYPE, ring, unseal

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = open_store(sqlite_url(root))
        self.key = load_or_create_key(root / "key.pem")
        self.manifests = self.signing_with(self.key)

    def signing_with(self, key: SigningKey, *trusted: SigningKey) -> Manifests:
        keys = ring([key.public_key, *(other.public_key for other in trusted)])
        manifests = Manifests(self.root / "adapters", key, keys, self.store)
        self.store.set_witness(manifests)
        return manifests

    def adapter(self, text: str = "weights") -> Adapter:
        directory = self.root / "adapters" / f"made-of-{text}"
        directory.mkdir(parents=True)
        (directory / CONFIG).write_text("{}")
        (directory / WEIGHTS).write_text(text)
        sha256 = content_digest(directory)
        return self.store.add_adapter(
            Adapter(
                name=f"opsd-{sha256[:16]}",
                sha256=sha256,
                lora_id=0,
                state=AdapterState.CANDIDATE,
                run_id="run-1",
                path=str(directory),
                rank=8,
                alpha=8.0,
                size_bytes=2,
                model_fingerprint="f" * 64,
                created_unix_s=1.0,
            )
        )

    def promote(self, adapter: Adapter) -> Path:
        """The manifest's file."""
        epoch = self.store.get_incumbent().epoch
        change = self.store.promote(
            adapter.name, expected_epoch=epoch, actor="ana", reason="better"
        )
        return self.manifests.path(adapter.name, change.audit_id)

    def check(self, adapter: Adapter) -> None:
        self.manifests.check(self.store.get_adapter(adapter.name))

    def statement(self, path: Path) -> dict[str, Any]:
        return unseal(MANIFEST_TYPE, path.read_text(), ring([self.key.public_key]))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def test_a_promotion_leaves_a_signed_manifest(bench: Bench) -> None:
    adapter = bench.adapter()
    bench.check(adapter)  # a candidate needs none
    said = bench.statement(bench.promote(adapter))
    entry = bench.store.promoting_entry(adapter.name)
    assert entry is not None
    files = read_contents(Path(adapter.path)).to_json()
    assert said["adapter"] == {"name": adapter.name, "sha256": adapter.sha256, "files": files}
    assert sorted(files) == [CONFIG, WEIGHTS]
    assert said["audit"] == {"id": entry.id, "sha256": entry.entry_sha256}
    assert said["approvals"] == [
        {"actor": "ana", "reason": "better", "time_unix_s": entry.time_unix_s}
    ]
    assert said["decision"] == {
        "action": "adapter.promote",
        "incumbent_before": "base",
        "incumbent_after": adapter.name,
        "epoch": 1,
    }
    assert said["key_id"] == bench.key.public_key.id
    assert json.loads(entry.detail_json)["signed_by"] == bench.key.public_key.id
    bench.check(adapter)


def test_a_canary_is_signed_too(bench: Bench) -> None:
    adapter = bench.adapter()
    change = bench.store.start_canary(
        adapter.name, share=0.1, expected_epoch=0, actor="ana", reason="try"
    )
    said = bench.statement(bench.manifests.path(adapter.name, change.audit_id))
    assert said["decision"]["action"] == "adapter.canary"
    bench.check(adapter)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_changed_file_is_named_with_both_digests(bench: Bench, name: str) -> None:
    adapter = bench.adapter()
    said = bench.statement(bench.promote(adapter))
    path = Path(adapter.path) / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(AdapterError) as caught:
        bench.check(adapter)
    for words in (str(path), said["adapter"]["files"][name]["sha256"]):
        assert words in str(caught.value)
    path.unlink()
    with pytest.raises(AdapterError, match=name):
        bench.check(adapter)


def test_a_manifest_that_was_touched_is_refused(bench: Bench) -> None:
    adapter = bench.adapter()
    path = bench.promote(adapter)
    good = path.read_text()
    path.chmod(0o644)
    envelope = json.loads(good)
    payload = envelope["payload"]
    path.write_text(json.dumps({**envelope, "payload": payload[:8] + "A" + payload[9:]}))
    with pytest.raises(AdapterError, match=f"{path.name}: the signature of key .* does not hold"):
        bench.check(adapter)
    path.write_text("{}")
    with pytest.raises(AdapterError, match="not a signed envelope"):
        bench.check(adapter)
    path.unlink()
    with pytest.raises(AdapterError, match=f"{path.name}: is missing, but audit entry 1 says"):
        bench.check(adapter)
    path.write_text(good)
    bench.check(adapter)


def test_another_adapters_manifest_is_refused(bench: Bench) -> None:
    """Signed by the right key, but about something else."""
    one, other = bench.adapter("one"), bench.adapter("other")
    path, theirs = bench.promote(one), bench.promote(other)
    path.chmod(0o644)
    path.write_text(theirs.read_text())
    with pytest.raises(AdapterError, match=r"its adapter\.name is .* vouches for something else"):
        bench.check(one)


def test_the_manifest_of_an_earlier_promotion_is_refused(bench: Bench) -> None:
    adapter = bench.adapter()
    first = bench.promote(adapter)
    bench.store.rollback(expected_epoch=1, actor="ana", reason="no")
    second = bench.promote(adapter)
    bench.check(adapter)
    second.chmod(0o644)
    second.write_text(first.read_text())
    with pytest.raises(AdapterError, match=r"its audit\.id is 1, expected 3"):
        bench.check(adapter)


def test_a_foreign_key_is_refused_until_it_is_trusted(bench: Bench, tmp_path: Path) -> None:
    adapter = bench.adapter()
    bench.promote(adapter)
    new = load_or_create_key(tmp_path / "new.pem")
    bench.manifests = bench.signing_with(new)
    with pytest.raises(AdapterError, match="not by a trusted key"):
        bench.check(adapter)
    bench.manifests = bench.signing_with(new, bench.key)
    bench.check(adapter)


def test_an_edited_entry_is_refused(bench: Bench) -> None:
    adapter = bench.adapter()
    bench.promote(adapter)
    bench.store._database.write(
        lambda connection: [
            connection.exec_driver_sql("DROP TRIGGER audit_no_update"),
            connection.exec_driver_sql("UPDATE audit SET actor = 'mallory'"),
        ]
    )
    with pytest.raises(AdapterError, match="audit entry 1, which let it serve, was edited"):
        bench.check(adapter)


def test_serving_without_an_entry_is_refused(bench: Bench) -> None:
    adapter = bench.adapter()
    for state in (AdapterState.INCUMBENT, AdapterState.PREVIOUS, AdapterState.CANARY):
        with pytest.raises(AdapterError, match="no entry that let it serve"):
            bench.manifests.check(replace(adapter, state=state))


def test_a_promotion_of_before_is_accepted_with_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = bench.adapter()
    bench.store._database.surroundings.witness = None
    assert not bench.promote(adapter).exists()
    with caplog.at_level(logging.WARNING):
        bench.check(adapter)
    assert "promoted before there were manifests" in caplog.text
    with pytest.raises(StateError, match="approve it to have one signed"):
        bench.manifests.envelope(adapter.name)


def test_what_cannot_be_signed_is_not_promoted(bench: Bench, tmp_path: Path) -> None:
    adapter = bench.adapter()
    (Path(adapter.path) / WEIGHTS).write_text("other")
    with pytest.raises(AdapterError, match="it is not promoted"):
        bench.promote(adapter)
    full = Manifests(
        tmp_path / "key.pem", bench.key, ring([bench.key.public_key]), bench.store
    )  # a file where a directory should be
    bench.store.set_witness(full)
    good = bench.adapter("good")
    with pytest.raises(StoreError, match="the manifest cannot be written"):
        bench.promote(good)
    assert bench.store.get_incumbent().epoch == 0
    assert bench.store.audit_head().id == 0
    assert bench.store.get_adapter(good.name).state is AdapterState.CANDIDATE


def test_a_manifest_of_a_promotion_that_never_was_counts_for_nothing(bench: Bench) -> None:
    """What a crash before the commit leaves."""
    adapter = bench.adapter()
    path = bench.promote(adapter)
    entry = bench.store.promoting_entry(adapter.name)
    assert entry is not None
    phantom = replace(entry, id=entry.id + 1, entry_sha256="0" * 64)
    bench.manifests.attest(Promotion(adapter, phantom))
    assert bench.manifests.path(adapter.name, phantom.id).exists()
    bench.check(adapter)
    assert bench.statement(path)["audit"]["id"] == entry.id
    # The number is used by another entry, then promoted for real: its own manifest replaces it.
    bench.store.rollback(expected_epoch=1, actor="ana", reason="no")
    bench.promote(adapter)
    bench.check(adapter)


def test_several_approvals_are_carried_over(bench: Bench) -> None:
    adapter = bench.adapter()
    bench.promote(adapter)
    entry = bench.store.promoting_entry(adapter.name)
    assert entry is not None
    both = [{"actor": "ana"}, {"actor": "bob"}]
    detail = json.dumps(json.loads(entry.detail_json) | {"approvals": both})
    other = replace(entry, id=77, detail_json=detail)
    bench.manifests.attest(Promotion(adapter, other))
    assert bench.statement(bench.manifests.path(adapter.name, 77))["approvals"] == both


def test_links_are_not_followed(bench: Bench, tmp_path: Path) -> None:
    adapter = bench.adapter()
    bench.promote(adapter)
    weights = Path(adapter.path) / WEIGHTS
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdapterError, match=WEIGHTS):
        bench.check(adapter)


def test_the_store_is_of_use_without_a_witness(tmp_path: Path) -> None:
    store: SqlStore = open_store(sqlite_url(tmp_path))
    assert store.promoting_entry("opsd-x") is None
    store.close()


def test_who_began_a_canary_phase_stands_beside_who_ended_it(bench: Bench) -> None:
    adapter = bench.adapter()
    bench.store.start_canary(adapter.name, share=0.1, expected_epoch=0, actor="ana", reason="try")
    bench.store.promote(adapter.name, expected_epoch=1, actor="opsd", reason="the steps are over")
    said = bench.statement(bench.manifests.path(adapter.name, 2))
    assert [(one["actor"], one["reason"]) for one in said["approvals"]] == [
        ("ana", "try"),
        ("opsd", "the steps are over"),
    ]


def test_a_canary_that_was_withdrawn_lends_its_approval_to_nobody(bench: Bench) -> None:
    adapter = bench.adapter()
    bench.store.start_canary(adapter.name, share=0.1, expected_epoch=0, actor="ana", reason="try")
    bench.store.rollback(expected_epoch=1, actor="ana", reason="no")
    said = bench.statement(bench.promote(adapter))
    assert [one["reason"] for one in said["approvals"]] == ["better"]
