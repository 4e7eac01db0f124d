"""Killed in the middle of a purge: what is erased is erased whole, and it can be gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pair_sets import NewPair, PairFilter
from opsd.daemon.types.pairs import Pair, PairInput, PairStatus, Verdict, VerdictKind

NUM_PAIRS = 90
PROGRAM = """
import sys
from opsd.daemon.collect.curation import Curator
from opsd.daemon.store import pair_changes
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pair_sets import PairFilter
pair_changes.BATCH = 20
store = open_store(sys.argv[1])
done = Curator(store).purge(PairFilter(submitter="mallory"), reason="r", actor="op")
print(done.num_pairs)
store.close()
"""


@pytest.mark.parametrize(("place", "erased"), [("before", 40), ("after", 60)])
def test_a_purge_that_is_killed_is_gone_on_with(tmp_path: Path, place: str, erased: int) -> None:
    url = sqlite_url(tmp_path)
    store = open_store(url)
    for _ in range(NUM_PAIRS):
        content = uuid4().hex
        given = PairInput(str(uuid4()), f"secret {content}", "Answer: 2", "numeric", "2")
        verdict = Verdict(VerdictKind.PASS, "numeric", "secret")
        pair = Pair(given, PairStatus.VERIFIED, verdict, "mallory", 1.0, content, content)
        store.add_pairs([NewPair(pair)])
    store.close()
    command = [sys.executable, "-c", PROGRAM, url]
    failpoint = {"OPSD_FAILPOINT": f"purge-{place}-commit:3"}
    killed = subprocess.run(command, env=os.environ | failpoint, capture_output=True)
    assert killed.returncode == -signal.SIGKILL

    store = open_store(url)
    counts = store.count_pairs()
    assert (counts.purged, counts.verified) == (erased, NUM_PAIRS - erased)
    page = store.list_pairs(limit=NUM_PAIRS, status=PairStatus.PURGED)
    assert {pair.input.prompt + pair.verdict.evidence for pair in page.items} == {""}
    # The entry was there before the first pair was touched.
    assert store.list_audit(limit=1).items[0].action == "pairs.purge"
    store.close()

    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(again.stdout) == NUM_PAIRS - erased
    store = open_store(url)
    assert store.count_filtered(PairFilter(submitter="mallory")) == 0
    assert store.count_pairs().new_since_last_run == 0
    store.close()
