"""Quarantine, release, purge, retention, verdicts: what changes, and that the counts follow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, func, select, text

from opsd.daemon.store import pair_changes, tables
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.adapters import Adapter
from opsd.daemon.types.pair_sets import AddRules, NewPair, PairFilter, Sweep
from opsd.daemon.types.pairs import (
    AddPairKind,
    Attempt,
    Origin,
    Pair,
    PairStatus,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.runs import Run

MakePair = Callable[..., Pair]
MakeRun = Callable[..., Run]
QUARANTINED, VERIFIED, UNVERIFIED, PURGED = (
    PairStatus.QUARANTINED,
    PairStatus.VERIFIED,
    PairStatus.UNVERIFIED,
    PairStatus.PURGED,
)


def check_counts(store: SqlStore) -> None:
    """The kept counts are those of the rows."""
    pairs, snapshots = tables.pairs, tables.snapshots

    def work(connection: Connection) -> tuple[dict[str, int], int, dict[int, tuple[int, int]]]:
        by_status = connection.execute(
            select(pairs.c.status, func.count()).group_by(pairs.c.status)
        ).all()
        newest = select(func.coalesce(func.max(snapshots.c.last_pair_seq), 0)).scalar_subquery()
        held = tables.snapshot_pairs
        new = connection.execute(
            select(func.count())
            .select_from(pairs)
            .where(
                pairs.c.status == "verified",
                pairs.c.seq > newest,
                ~select(held.c.pair_id).where(held.c.pair_id == pairs.c.id).exists(),
            )
        ).scalar_one()
        groups = connection.execute(
            select(pairs.c.group_id, func.count(), func.sum(pairs.c.size_bytes)).group_by(
                pairs.c.group_id
            )
        ).all()
        return (
            {row[0]: row[1] for row in by_status},
            new,
            {row[0]: (row[1], int(row[2])) for row in groups},
        )

    by_status, new, groups = store._database.read(work)
    counts = store.count_pairs()
    assert counts.verified == by_status.get("verified", 0)
    assert counts.unverified == by_status.get("unverified", 0)
    assert counts.quarantined == by_status.get("quarantined", 0)
    assert counts.purged == by_status.get("purged", 0)
    assert counts.new_since_last_run == new
    kept = store._database.read(
        lambda connection: connection.execute(select(tables.pair_groups)).mappings().all()
    )
    for row in kept:
        total = sum(row[f"num_{status.value}"] for status in PairStatus)
        assert (total, row["size_bytes"]) == groups.get(row["id"], (0, 0))


@pytest.fixture
def mixed(store: SqlStore, make_pair: MakePair) -> list[Pair]:
    """Six pairs: of ana and bob, of two sources, verified and not."""
    pairs = [
        replace(
            make_pair(
                source="tickets" if number < 3 else "web",
                status=UNVERIFIED if number == 5 else VERIFIED,
            ),
            submitter="bob" if number % 2 else "ana",
            origin=Origin.SELF_PLAY if number == 4 else Origin.SUBMITTED,
        )
        for number in range(6)
    ]
    for pair in pairs:
        store.add_pair(pair)
    return pairs


def test_origin_and_reason_come_back(store: SqlStore, make_pair: MakePair) -> None:
    pair = replace(
        make_pair(status=QUARANTINED), origin=Origin.SELF_PLAY, quarantine_reason="no language"
    )
    store.add_pair(pair)
    assert store.get_pair(pair.input.id) == pair
    check_counts(store)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        (PairFilter(submitter="ana"), [0, 2, 4]),
        (PairFilter(source="web"), [3, 4, 5]),
        (PairFilter(origin=Origin.SELF_PLAY), [4]),
        (PairFilter(submitter="bob", source="web"), [3, 5]),
    ],
)
def test_quarantine_takes_what_matches_and_release_gives_it_back(
    store: SqlStore, mixed: list[Pair], wanted: PairFilter, numbers: list[int]
) -> None:
    assert store.count_filtered(wanted) == len(numbers)
    done = store.change_pairs(wanted, QUARANTINED, reason="odd")
    assert (done.num_removed, done.is_done) == (len(numbers), True)
    for number, pair in enumerate(mixed):
        stored = store.get_pair(pair.input.id)
        if number in numbers:
            assert (stored.status, stored.quarantine_reason) == (QUARANTINED, "odd")
        else:
            assert stored == pair
    check_counts(store)
    assert store.change_pairs(wanted, QUARANTINED, reason="again").num_removed == 0
    held = replace(wanted, status=QUARANTINED)
    assert store.change_pairs(held, VERIFIED).num_removed == len(numbers)
    assert [store.get_pair(pair.input.id) for pair in mixed] == mixed
    check_counts(store)


def test_a_change_goes_on_from_batch_to_batch(
    store: SqlStore, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_changes, "BATCH", 4)
    ids = []
    for _ in range(10):
        pair = make_pair()
        store.add_pair(pair)
        ids.append(pair.input.id)
    for wanted in (PairFilter(submitter="ana"), PairFilter(ids=tuple(ids))):
        done = Sweep(0, 0, False)
        sizes = []
        while not done.is_done:
            done = store.change_pairs(wanted, QUARANTINED, after_seq=done.last_seq)
            sizes.append(done.num_removed)
        assert sizes == [4, 4, 2]
        store.change_pairs(wanted, VERIFIED)
        store.change_pairs(wanted, VERIFIED, after_seq=4)
        store.change_pairs(wanted, VERIFIED, after_seq=8)
        assert store.count_pairs().verified == 10


def test_purging_erases_what_the_pair_says(
    store: SqlStore, store_url: str, make_pair: MakePair
) -> None:
    pair = make_pair("secretword", source="tickets")
    pair = replace(
        pair,
        input=replace(
            pair.input, solution="secretword", reference="secretword", stratum="secretword"
        ),
        verdict=replace(pair.verdict, evidence="secretword"),
        content_sha256="f" * 64,
        prompt_key="e" * 64,
    )
    near = AddRules(is_near_duplicate=lambda a, b: True)
    store.add_pair(pair, band_keys=(1, 2), rules=near)
    done = store.purge_pairs(PairFilter(submitter="ana"), band_keys=lambda prompt: (1, 2))
    assert (done.num_removed, done.is_done) == (1, True)
    assert store.get_pair(pair.input.id).input.source == "tickets"

    def everything(connection: Connection) -> str:
        queries = ("SELECT * FROM pairs", "SELECT * FROM pair_bands")
        return repr([connection.execute(text(query)).all() for query in queries])

    found = store._database.read(everything)
    assert "secretword" not in found
    assert pair.input.id in found
    assert store._database.read(lambda c: c.execute(text("SELECT * FROM pair_bands")).all()) == []
    assert store.list_pairs(limit=5).total == 0
    assert store.list_pairs(limit=5, status=PURGED).total == 1
    assert store.purge_pairs(PairFilter(submitter="ana")).num_removed == 0
    check_counts(store)


def test_purged_content_does_not_come_back(store: SqlStore, make_pair: MakePair) -> None:
    pair = make_pair("one")
    store.add_pair(pair)
    store.purge_pairs(PairFilter(ids=(pair.input.id,)))
    for again in (pair, make_pair("one"), make_pair("two", id=pair.input.id)):
        assert store.add_pair(again).kind is AddPairKind.PURGED
    assert store.trainable_pairs() == []
    assert store.change_pairs(PairFilter(ids=(pair.input.id,)), QUARANTINED).num_removed == 0


def test_a_snapshot_keeps_naming_a_purged_pair(
    store: SqlStore,
    mixed: list[Pair],
    make_run: MakeRun,
    make_adapter: Callable[..., Adapter],
) -> None:
    run, heir, other = (store.create_run(make_run()) for _ in range(3))
    store.update_run(run.id, spec_json=json.dumps({"shard": {"path": "/runs/shard.jsonl"}}))
    store.record_snapshot(run.id, [mixed[0].input.id, mixed[1].input.id])
    store.record_snapshot(other.id, [mixed[3].input.id])
    adapter = store.add_adapter(make_adapter(run.id))
    went_on = json.dumps({"initial_adapter_path": adapter.path})
    store.update_run(heir.id, spec_json=went_on, incumbent_at_start=adapter.name)
    inherited = store.add_adapter(make_adapter(heir.id))
    store.record_solves(run.id, {mixed[0].input.id: (3, 1)})
    wanted = PairFilter(submitter="ana")
    for _ in range(2):
        first, second = store.trained_runs(wanted)
        assert (first.run_id, first.num_pairs, first.adapters) == (run.id, 1, (adapter.name,))
        assert first.shard_path == "/runs/shard.jsonl"
        assert (second.run_id, second.num_pairs, second.through) == (heir.id, 0, adapter.name)
        assert second.adapters == (inherited.name,)
        store.purge_pairs(wanted)
    assert store.trained_prompt_keys([mixed[0].prompt_key]) == {mixed[0].prompt_key}
    assert {run.run_id for run in store.trained_runs(PairFilter(ids=(mixed[3].input.id,)))} == {
        other.id
    }


def test_expiry_deletes_the_old_and_spares_what_was_trained_on(
    store: SqlStore, make_pair: MakePair, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_changes, "BATCH", 3)
    pairs = [replace(make_pair(), created_unix_s=float(number)) for number in range(10)]
    store.add_pairs([NewPair(pair) for pair in pairs])
    store.add_pair(replace(make_pair(status=UNVERIFIED), created_unix_s=0.0))
    run = store.create_run(make_run())
    store.record_snapshot(run.id, [pairs[0].input.id, pairs[1].input.id, pairs[2].input.id])

    def expire(erase: bool) -> int:
        done, removed = Sweep(0, 0, False), 0
        while not done.is_done:
            done = store.expire_pairs(
                VERIFIED, before_unix_s=7.0, after_seq=done.last_seq, erase_trained=erase
            )
            removed += done.num_removed
        return removed

    assert expire(False) == 4
    left = [pair.input.id for pair in store.trainable_pairs()]
    assert left == [pair.input.id for pair in [*pairs[:3], *pairs[7:]]]
    check_counts(store)
    assert expire(True) == 3
    assert store.get_pair(pairs[0].input.id).status is PURGED
    assert store.count_pairs().unverified == 1
    check_counts(store)
    # What retention removed may come again.
    assert store.add_pair(pairs[5]).kind is AddPairKind.STORED


def test_attempts_expire(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_changes, "BATCH", 3)
    store.add_attempts([Attempt(f"a{n}", "r", "base", "p", "c", 1, float(n)) for n in range(8)])
    done, removed = Sweep(0, 0, False), 0
    while not done.is_done:
        done = store.expire_attempts(before_unix_s=5.0)
        removed += done.num_removed
    assert removed == 5
    assert store.get_attempt("a5").created_unix_s == 5.0


def test_another_verdict_changes_the_status(store: SqlStore, make_pair: MakePair) -> None:
    pair = make_pair(status=UNVERIFIED)
    store.add_pair(pair)
    passed = Verdict(VerdictKind.PASS, "numeric", "2 = 2", 0.5)
    changed = store.set_verdict(pair.input.id, passed)
    assert changed == store.get_pair(pair.input.id)
    assert changed is not None
    assert (changed.status, changed.verdict) == (VERIFIED, passed)
    check_counts(store)
    wanted = PairFilter(ids=(pair.input.id,))
    store.change_pairs(wanted, QUARANTINED, reason="odd")
    held = store.set_verdict(pair.input.id, Verdict(VerdictKind.FAIL, "numeric", "no"))
    assert held is not None
    assert held.status is QUARANTINED
    store.change_pairs(replace(wanted, status=QUARANTINED), VERIFIED)
    assert store.get_pair(pair.input.id).status is UNVERIFIED
    store.purge_pairs(wanted)
    assert store.set_verdict(pair.input.id, passed) is None
    assert store.set_verdict("nobody", passed) is None
    check_counts(store)


def test_listing_filters_and_totals(store: SqlStore, mixed: list[Pair]) -> None:
    page = store.list_pairs(limit=2, submitter="ana")
    assert page.total == 3
    assert page.items == (mixed[4], mixed[2])
    assert store.list_pairs(limit=2, submitter="ana", token=page.next_token).items == (mixed[0],)
    assert store.list_pairs(limit=9, origin=Origin.SELF_PLAY).items == (mixed[4],)
    assert store.list_pairs(limit=9, origin=Origin.IMPORTED).total == 0
    both = store.list_pairs(limit=9, source="web", submitter="bob", status=UNVERIFIED)
    assert (both.items, both.total) == ((mixed[5],), 1)


def test_dense_and_rare_matches_are_listed_the_same(
    store: SqlStore, mixed: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store.list_pairs(limit=2, submitter="ana")
    monkeypatch.setattr("opsd.daemon.store.pairs.FEW", 0)
    assert store.list_pairs(limit=2, submitter="ana") == before


def test_what_a_draw_could_have_taken_is_not_new_any_more(
    store: SqlStore, make_pair: MakePair, make_run: MakeRun
) -> None:
    """Pairs that a cap kept out must not trigger run after run."""
    pairs = [make_pair() for _ in range(5)]
    store.add_pairs([NewPair(pair) for pair in pairs])
    seqs = [seq for seq, _ in store.scan_pairs(after_seq=0, limit=9)]
    run = store.create_run(make_run())
    store.record_snapshot(run.id, [pairs[0].input.id], last_seq=seqs[3])
    assert store.count_pairs().new_since_last_run == 1
    store.add_pair(make_pair())
    assert store.count_pairs().new_since_last_run == 2


def test_groups_say_who_sent_what(store: SqlStore, mixed: list[Pair]) -> None:
    store.purge_pairs(PairFilter(ids=(mixed[0].input.id,)))
    groups = store.pair_groups(PairFilter(submitter="ana"))
    assert [(g.source, g.origin, g.verified, g.purged) for g in groups] == [
        ("tickets", Origin.SUBMITTED, 1, 1),
        ("web", Origin.SELF_PLAY, 1, 0),
    ]
    assert sum(group.verified + group.unverified for group in store.pair_groups()) == 5


actions = st.lists(
    st.tuples(
        st.sampled_from(["add", "quarantine", "release", "purge", "expire", "snapshot", "verdict"]),
        st.integers(0, 9),
    ),
    max_size=25,
)


@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps=actions)
def test_counts_are_those_of_the_rows_whatever_happens(
    steps: list[tuple[str, int]],
    tmp_path_factory: pytest.TempPathFactory,
    make_pair: MakePair,
    make_run: MakeRun,
) -> None:
    store = open_store(sqlite_url(tmp_path_factory.mktemp("counts")))
    pairs: list[Pair] = []
    for action, number in steps:
        some = PairFilter(ids=tuple(pair.input.id for pair in pairs[number::3]) or ("none",))
        if action == "add":
            status = (VERIFIED, UNVERIFIED, QUARANTINED)[number % 3]
            pair = make_pair(status=status, source=f"source {number % 2}")
            store.add_pair(pair)
            pairs.append(pair)
        elif action == "quarantine":
            store.change_pairs(some, QUARANTINED, reason="r")
        elif action == "release":
            store.change_pairs(replace(some, status=QUARANTINED), VERIFIED)
        elif action == "purge":
            store.purge_pairs(some)
        elif action == "expire":
            store.expire_pairs(VERIFIED, before_unix_s=9.0, erase_trained=bool(number % 2))
        elif action == "verdict" and pairs:
            kind = VerdictKind.PASS if number % 2 else VerdictKind.FAIL
            store.set_verdict(pairs[number % len(pairs)].input.id, Verdict(kind, "v", ""))
        elif action == "snapshot":
            stored = [pair.input.id for _, pair in store.scan_pairs(after_seq=0, limit=99)]
            store.record_snapshot(store.create_run(make_run()).id, stored[: number + 1])
        check_counts(store)
    store.close()
