"""Two processes on one PostgreSQL: quotas, near-duplicates and counts hold."""

from __future__ import annotations

import subprocess
import sys

from sqlalchemy import text

from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pair_sets import PairFilter
from opsd.daemon.types.pairs import PairStatus

NUM_EACH = 60

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4
from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pair_sets import AddRules, Quota
from opsd.daemon.types.pairs import *

url, quota, same_prompts = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "same"

def make(number):
    prompt = f"Prompt {number}" if same_prompts else uuid4().hex
    # Each process words its prompts its own way: never the same content.
    prompt = prompt.upper() if uuid4().int % 2 else prompt
    given = PairInput(str(uuid4()), prompt, f"Answer: 2", "numeric", "2", source=f"s{number % 3}")
    verdict = Verdict(VerdictKind.PASS, "numeric", "")
    content = uuid4().hex
    return number, Pair(given, PairStatus.VERIFIED, verdict, "ana", 1.0, content, content)

rules = AddRules(
    is_near_duplicate=lambda a, b: a.casefold() == b.casefold(), quota=Quota(pairs_per_day=quota)
)
store = open_store(url, exclusive=False)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(8) as threads:
    def add(one):
        number, pair = one
        return store.add_pair(pair, band_keys=(number, -number), rules=rules).kind.value
    kinds = list(threads.map(add, map(make, range(60))))
print(" ".join(kinds))
store.close()
"""


def run_two(url: str, quota: int, prompts: str) -> list[str]:
    """What two processes are answered that add 60 pairs each at the same time."""
    command = [sys.executable, "-c", PROGRAM, url, str(quota), prompts]
    both = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert all(process.returncode == 0 for process in both)
    return [kind for output in outputs for kind in output.split()]


def count_rows(store: SqlStore) -> int:
    return int(
        store._database.read(
            lambda connection: connection.execute(text("SELECT count(*) FROM pairs")).scalar_one()
        )
    )


def test_two_processes_do_not_overshoot_a_quota(postgres_url: str) -> None:
    quota = 37
    open_store(postgres_url).close()
    kinds = run_two(postgres_url, quota, "different")
    assert kinds.count("stored") == quota
    assert kinds.count("over_quota") == 2 * NUM_EACH - quota
    store = open_store(postgres_url)
    assert count_rows(store) == store.count_pairs().verified == quota
    assert store.quota_use("ana").pairs_today == quota
    store.close()


def test_two_processes_store_one_of_near_duplicates(postgres_url: str) -> None:
    open_store(postgres_url).close()
    kinds = run_two(postgres_url, 0, "same")
    assert kinds.count("stored") == NUM_EACH
    assert kinds.count("near_duplicate") == NUM_EACH
    store = open_store(postgres_url)
    assert count_rows(store) == store.count_pairs().verified == NUM_EACH
    groups = store.pair_groups(PairFilter(submitter="ana"))
    assert [group.verified for group in groups] == [20, 20, 20]
    store.close()


def test_changes_beside_a_writer_keep_the_counts(postgres_url: str) -> None:
    """Quarantine and release, over and over, while another process adds."""
    open_store(postgres_url).close()
    command = [sys.executable, "-c", PROGRAM, postgres_url, "0", "different"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        store = open_store(postgres_url, exclusive=False)
        writer.stdin.write("\n")
        writer.stdin.flush()
        wanted = PairFilter(source="s1")
        while writer.poll() is None:
            store.change_pairs(wanted, PairStatus.QUARANTINED, reason="r")
            store.change_pairs(
                PairFilter(source="s1", status=PairStatus.QUARANTINED), PairStatus.VERIFIED
            )
        assert writer.returncode == 0
    counts = store.count_pairs()
    assert (counts.verified, counts.quarantined) == (NUM_EACH, 0)
    assert count_rows(store) == counts.new_since_last_run == NUM_EACH
    store.close()
