"""SIGKILL between a manifest and its commit: what serves has a manifest, and no other counts."""

from __future__ import annotations

import subprocess
import sys
from os import environ
from pathlib import Path

import pytest

from opsd.daemon.adapters.files import content_digest
from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.adapters.signing import load_or_create_key
from opsd.daemon.store.failpoints import VARIABLE
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter, AdapterState
from opsd.daemon.types.audit import ChainVerifier
from opsd.daemon.types.signatures import ring

CALLS = {
    "promote": "s.promote({name!r}, expected_epoch=0, actor='a', reason='r')",
    "canary": "s.start_canary({name!r}, share=0.5, expected_epoch=0, actor='a', reason='r')",
}
PROGRAM = """
from pathlib import Path
from opsd.daemon.adapters.manifest import Manifests
from opsd.daemon.adapters.signing import load_or_create_key
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.signatures import ring
root = Path({root!r})
s = open_store({url!r})
key = load_or_create_key(root / "key.pem")
s.set_witness(Manifests(root / "adapters", key, ring([key.public_key]), s))
{call}
"""


def add_candidate(store: SqlStore, root: Path) -> Adapter:
    directory = root / "adapters" / "one"
    directory.mkdir(parents=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_text("weights")
    digest = content_digest(directory)
    state = AdapterState.CANDIDATE
    return store.add_adapter(
        Adapter(f"opsd-{digest[:16]}", digest, 0, state, "-", str(directory), 8, 8.0, 1, "f", 1.0)
    )


@pytest.mark.parametrize("verb", CALLS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_kill_leaves_a_promotion_with_its_manifest_or_neither(
    store_url: str, tmp_path: Path, verb: str, when: str
) -> None:
    store = open_store(store_url)
    adapter = add_candidate(store, tmp_path)
    store.close()
    call = CALLS[verb].format(name=adapter.name)
    killed = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=str(tmp_path), url=store_url, call=call)],
        env=dict(environ) | {VARIABLE: f"{verb}-{when}-commit"},
        check=False,
    )
    assert killed.returncode == -9

    store = open_store(store_url)
    key = load_or_create_key(tmp_path / "key.pem")
    manifests = Manifests(tmp_path / "adapters", key, ring([key.public_key]), store)
    # Written before the commit, in any case.
    assert manifests.path(adapter.name, 1).exists()
    found = store.get_adapter(adapter.name)
    if when == "before":
        assert found.state is AdapterState.CANDIDATE
        assert store.promoting_entry(adapter.name) is None
        # What did not happen can be done now, and the leftover does not stand in its way.
        store.add_audit(actor="a", action="x", subject="s", reason="takes the number")
        store.set_witness(manifests)
        manifests.check(found)
        store.promote(adapter.name, expected_epoch=0, actor="b", reason="r")
    manifests.check(store.get_adapter(adapter.name))
    chain = ChainVerifier([store.audit_head()])
    for batch in store.audit_entries():
        for entry in batch:
            chain.feed(entry)
    chain.finish()
    assert chain.problems == []
    store.close()
