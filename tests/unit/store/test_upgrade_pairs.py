"""A database with pairs from before they were counted, grouped and drawn by index."""

from __future__ import annotations

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from opsd.daemon.store.sql import open_store
from opsd.daemon.types.pair_sets import DrawPolicy, PairFilter
from opsd.daemon.types.pairs import Origin, PairStatus

INSERT = text(
    "INSERT INTO pairs (id, content_sha256, prompt_key, prompt, solution, verifier, reference,"
    " source, stratum, status, verdict_kind, verdict_verifier, verdict_evidence,"
    " verdict_duration_s, submitter, created_unix_s) VALUES (:id, :id, :id, :prompt, 's',"
    " 'exact', 'r', :source, '', :status, 'pass', 'exact', '', 0, :submitter, 0)"
)


def test_pairs_that_are_there_are_counted_and_can_be_drawn(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ScriptDirectory._upgrade_revs
    with monkeypatch.context() as before:
        before.setattr(
            ScriptDirectory, "_upgrade_revs", lambda self, _, now: steps(self, "0003", now)
        )
        old = open_store(store_url)
    rows = [
        {
            "id": f"pair-{number}",
            "prompt": f"prömpt {number}",
            "source": "web" if number % 2 else "",
            "submitter": "ana",
            "status": "unverified" if number == 9 else "verified",
        }
        for number in range(10)
    ]

    def fill(connection: Connection) -> None:
        connection.execute(INSERT, rows)
        connection.execute(
            text(
                "INSERT INTO runs (id, state, trigger, actor, reason, created_unix_s,"
                " updated_unix_s, overrides_json, source, request_id, spec_json, run_dir,"
                " num_pairs, step, num_steps, metrics_json, generated_tokens, eval_done,"
                " eval_total, candidate, incumbent_at_start, launches, cancel_reason,"
                " cancel_actor, error, log_tail) VALUES ('run', 'failed', 'cron', '', '', 0, 0,"
                " '', '', '', '', '', 0, 0, 0, '', 0, 0, 0, '', '', 0, '', '', '', '')"
            )
        )
        connection.execute(
            text(
                "INSERT INTO snapshots (run_id, last_pair_seq, created_unix_s)"
                " SELECT 'run', seq, 0 FROM pairs WHERE id = 'pair-5'"
            )
        )

    old._database.write(fill)
    old.close()

    store = open_store(store_url)
    counts = store.count_pairs()
    assert (counts.verified, counts.unverified, counts.new_since_last_run) == (9, 1, 3)
    assert [(g.source, g.origin, g.verified) for g in store.pair_groups()] in (
        [("", Origin.SUBMITTED, 5), ("web", Origin.SUBMITTED, 4)],
        [("web", Origin.SUBMITTED, 4), ("", Origin.SUBMITTED, 5)],
    )
    # ö is two bytes.
    assert sum(group.size_bytes for group in store.pair_groups()) == 10 * (9 + 2)
    keys = store._database.read(
        lambda connection: connection.execute(text("SELECT sample_key FROM pairs")).scalars().all()
    )
    assert len(set(keys)) == 10
    assert all(0 <= key < 2**63 for key in keys)
    drawn = store.draw_pairs("run", DrawPolicy(100), held_out=lambda keys: set())
    assert len(drawn.pairs) == 9
    assert len(store.pairs_without_bands(99)) == 10
    store.change_pairs(PairFilter(source="web"), PairStatus.QUARANTINED)
    assert store.count_pairs().quarantined == 5
    store.close()
