"""An acknowledged pair is stored, once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from opsd.daemon.errors import InvalidInputError, NotFoundError, StoreError
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pairs import AddPairKind, Attempt, Pair, PairStatus, Rating
from opsd.daemon.types.runs import Run

MakePair = Callable[..., Pair]
MakeRun = Callable[..., Run]


def test_a_pair_comes_back_as_it_went_in(store: SqlStore, make_pair: MakePair) -> None:
    pair = make_pair("ünïcödé 漢字", source="ticket")
    assert store.add_pair(pair).kind is AddPairKind.STORED
    assert store.get_pair(pair.input.id) == pair


def test_pairs_survive_closing(store_url: str, make_pair: MakePair) -> None:
    pair = make_pair()
    first = open_store(store_url)
    first.add_pair(pair)
    first.close()
    second = open_store(store_url)
    assert second.get_pair(pair.input.id) == pair
    second.close()


def test_the_same_id_and_content_is_stored_once(store: SqlStore, make_pair: MakePair) -> None:
    pair = make_pair()
    store.add_pair(pair)
    again = store.add_pair(pair)
    assert again.kind is AddPairKind.ALREADY_STORED
    assert again.pair == pair
    assert store.list_pairs(limit=10).total == 1


def test_an_id_cannot_be_taken_by_other_content(store: SqlStore, make_pair: MakePair) -> None:
    pair = make_pair("one")
    store.add_pair(pair)
    conflict = store.add_pair(make_pair("two", id=pair.input.id))
    assert conflict.kind is AddPairKind.ID_CONFLICT
    assert conflict.pair == pair
    assert store.get_pair(pair.input.id) == pair


def test_the_same_content_under_another_id_is_a_duplicate(
    store: SqlStore, make_pair: MakePair
) -> None:
    pair = make_pair("one")
    store.add_pair(pair)
    duplicate = store.add_pair(make_pair("one"))
    assert duplicate.kind is AddPairKind.DUPLICATE
    assert duplicate.pair == pair
    assert store.list_pairs(limit=10).total == 1


def test_of_many_at_once_each_content_is_stored_once(store: SqlStore, make_pair: MakePair) -> None:
    pairs = [make_pair(f"content {number % 10}") for number in range(80)]
    with ThreadPoolExecutor(16) as threads:
        kinds = [result.kind for result in threads.map(store.add_pair, pairs)]
    assert kinds.count(AddPairKind.STORED) == 10
    assert kinds.count(AddPairKind.DUPLICATE) == 70
    assert store.count_pairs().verified == 10


def test_one_bad_write_does_not_spoil_its_neighbours(
    store: SqlStore, make_pair: MakePair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes that share a transaction fail alone. A surrogate cannot be stored anywhere."""
    good = [make_pair() for _ in range(20)]
    bad = make_pair("\ud800")
    held = threading.Event()
    entered = threading.Event()

    def hold() -> None:
        def work(_connection: object) -> None:
            entered.set()
            held.wait(10)

        store._database.write(work)

    with ThreadPoolExecutor(32) as threads:
        blocker = threads.submit(hold)
        entered.wait(10)
        futures = [threads.submit(store.add_pair, pair) for pair in [*good[:10], bad, *good[10:]]]
        while len(store._database._waiting) < 21:
            pass
        held.set()
        blocker.result()
        with pytest.raises((StoreError, UnicodeEncodeError)):
            futures[10].result()
        kinds = {future.result().kind for future in futures[:10] + futures[11:]}
    assert kinds == {AddPairKind.STORED}
    assert store.count_pairs().verified == 20


def test_listing_pages_newest_first_and_filters(store: SqlStore, make_pair: MakePair) -> None:
    pairs = [
        make_pair(
            source="a" if number % 2 else "b",
            status=PairStatus.VERIFIED if number < 4 else PairStatus.UNVERIFIED,
        )
        for number in range(7)
    ]
    for pair in pairs:
        store.add_pair(pair)
    seen: list[Pair] = []
    token = ""
    while True:
        page = store.list_pairs(limit=3, token=token)
        assert page.total == 7
        seen += page.items
        token = page.next_token
        if not token:
            break
    assert seen == pairs[::-1]
    filtered = store.list_pairs(limit=10, status=PairStatus.VERIFIED, source="a")
    assert filtered.items == (pairs[3], pairs[1])
    assert filtered.next_token == ""


@pytest.mark.parametrize("token", ["x", "-1", "1.5", "9" * 30, "\uff11"])
def test_a_made_up_page_token_is_refused(store: SqlStore, token: str) -> None:
    with pytest.raises(InvalidInputError, match="page token"):
        store.list_pairs(limit=3, token=token)


def test_only_verified_pairs_are_trainable(store: SqlStore, make_pair: MakePair) -> None:
    good = [make_pair(source="s") for _ in range(3)]
    for pair in good:
        store.add_pair(pair)
        store.add_pair(make_pair(source="s", status=PairStatus.UNVERIFIED))
    assert store.trainable_pairs() == good
    assert store.trainable_pairs(limit=2) == good[1:]
    assert store.trainable_pairs(source="other") == []


def test_new_pairs_are_those_after_the_last_snapshot(
    store: SqlStore, make_pair: MakePair, make_run: MakeRun
) -> None:
    pairs = [make_pair() for _ in range(4)]
    for pair in pairs:
        store.add_pair(pair)
    store.add_pair(make_pair(status=PairStatus.UNVERIFIED))
    assert store.count_pairs().new_since_last_run == 4
    run = store.create_run(make_run())
    ids = [pair.input.id for pair in pairs[2:]]
    store.record_snapshot(run.id, ids)
    store.record_snapshot(run.id, ids)
    counts = store.count_pairs()
    assert (counts.verified, counts.unverified, counts.new_since_last_run) == (4, 1, 0)
    store.add_pair(make_pair())
    assert store.count_pairs().new_since_last_run == 1
    keys = [pair.prompt_key for pair in pairs]
    assert store.trained_prompt_keys(keys * 400) == set(keys[2:])


def test_a_snapshot_of_unknown_pairs_is_refused(store: SqlStore, make_run: MakeRun) -> None:
    run = store.create_run(make_run())
    with pytest.raises(NotFoundError, match="1 pairs"):
        store.record_snapshot(run.id, [str(uuid4())])


def test_attempts_and_feedback(store: SqlStore) -> None:
    attempt = Attempt("a1", "r1", "base", "p\0\ud800", "c", 3, 2.0)
    store.add_attempts([attempt, Attempt("a2", "r2", "base", "p", "c", 3, 2.0)])
    store.add_attempts([attempt])
    assert store.get_attempt("a1").prompt == "p\ufffd\ufffd"
    assert store.get_attempt("a1").rating is None
    store.set_feedback("a1", Rating.BAD, "wrong")
    store.set_feedback("a1", None, "")
    stored = store.get_attempt("a1")
    assert (stored.rating, stored.comment) == (Rating.BAD, "wrong")
    assert store.get_attempt("a2").comment == ""
    with pytest.raises(NotFoundError):
        store.set_feedback("a3", Rating.GOOD, "")
