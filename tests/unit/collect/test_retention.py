"""What is too old goes by itself, in small steps, and the audit log says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from opsd.daemon.collect.retention import RetentionSweeper
from opsd.daemon.config.collect import RetentionConfig
from opsd.daemon.errors import StoreError
from opsd.daemon.store import pair_changes
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pair_sets import AddRules
from opsd.daemon.types.pairs import (
    AddPairKind,
    Attempt,
    Pair,
    PairInput,
    PairStatus,
    Verdict,
    VerdictKind,
)

DAY_S = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


def a_pair(day: float, status: PairStatus = PairStatus.VERIFIED, prompt: str = "") -> Pair:
    given = PairInput(str(uuid4()), prompt or uuid4().hex, "Answer: 2", "numeric", "2")
    verdict = Verdict(VerdictKind.PASS, "numeric", "")
    content = uuid4().hex
    return Pair(given, status, verdict, "ana", day * DAY_S, content, content)


def sweeper(store: SqlStore, **config: float) -> RetentionSweeper:
    settings = RetentionConfig.model_validate(config)
    return RetentionSweeper(store, settings, clock=lambda: 100 * DAY_S)


async def test_nothing_goes_unless_it_is_asked_for(store: SqlStore) -> None:
    store.add_pair(a_pair(0))
    assert await sweeper(store).sweep() == {}
    assert store.list_audit(limit=9).items == ()


async def test_each_kind_goes_at_its_age(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_changes, "BATCH", 2)
    kept = []
    for day in range(90, 100):
        for status in (PairStatus.VERIFIED, PairStatus.UNVERIFIED, PairStatus.QUARANTINED):
            pair = a_pair(day, status)
            store.add_pair(pair)
            kept.append(pair)
    store.add_attempts([Attempt(f"a{n}", "r", "base", "p", "c", 1, n * DAY_S) for n in range(99)])
    removed = await sweeper(store, unverified_days=3, quarantined_days=5, attempts_days=2).sweep()
    assert removed == {"unverified pairs": 7, "quarantined pairs": 5, "attempts": 98}
    counts = store.count_pairs()
    assert (counts.verified, counts.unverified, counts.quarantined) == (10, 3, 5)
    (entry,) = store.list_audit(limit=9).items
    assert (entry.actor, entry.action) == ("retention", "retention.sweep")
    assert json.loads(entry.detail_json)["removed"] == removed
    assert await sweeper(store, unverified_days=3).sweep() == {}
    assert len(store.list_audit(limit=9).items) == 1


async def test_it_sweeps_by_itself_and_outlives_a_store_that_is_away(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add_pair(a_pair(0))
    real = store.expire_pairs
    fails = [True]

    def flaky(*args: object, **options: object) -> object:
        if fails.pop() if fails else False:
            raise StoreError("away")
        return real(*args, **options)  # type: ignore[arg-type]

    loop, swept = asyncio.get_running_loop(), asyncio.Event()
    real_audit = store.add_audit

    def audit(**entry: str) -> int:
        loop.call_soon_threadsafe(swept.set)
        return real_audit(**entry)

    monkeypatch.setattr(store, "expire_pairs", flaky)
    monkeypatch.setattr(store, "add_audit", audit)
    sweeping = sweeper(store, verified_days=1, sweep_every_s=0.01)
    sweeping.start()
    await swept.wait()
    await sweeping.stop()
    assert store.count_pairs().verified == 0
    assert not fails


class Near:
    def band_keys(self, prompt: str) -> tuple[int, ...]:
        return (7,)

    def is_near_duplicate(self, a: str, b: str) -> bool:
        return a.casefold() == b.casefold()


async def test_pairs_of_before_get_bands(store: SqlStore) -> None:
    old = a_pair(99, prompt="what is it")
    for _ in range(3):
        store.add_pair(a_pair(99))
    store.add_pair(old)
    near = Near()
    filling = RetentionSweeper(store, RetentionConfig(), near)
    assert await filling.fill_bands() == 4
    assert await filling.fill_bands() == 0
    assert await RetentionSweeper(store, RetentionConfig()).fill_bands() == 0
    rules = AddRules(is_near_duplicate=near.is_near_duplicate)
    again = a_pair(99)
    again = replace(again, input=replace(again.input, prompt="WHAT is it"))
    found = store.add_pair(again, band_keys=(7,), rules=rules)
    assert (found.kind, found.pair) == (AddPairKind.NEAR_DUPLICATE, old)
