"""What is refused although it is well formed: near-duplicates, purged content, quotas."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import pytest
from sqlalchemy import text

from opsd.daemon.store.pair_insert import CANDIDATES_PER_KEY, MAX_CANDIDATES
from opsd.daemon.store.pair_rows import stored_keys
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pair_sets import AddRules, NewPair, PairFilter, Quota
from opsd.daemon.types.pairs import AddPairKind, AddPairResult, Pair, PairStatus

MakePair = Callable[..., Pair]
KEYS = (-(2**63), 2**63 - 1, 0, 5)


def is_near(a: str, b: str) -> bool:
    return a.casefold() == b.casefold()


NEAR = AddRules(is_near_duplicate=is_near)
NEAR_ANSWER = AddRules(is_near_duplicate=is_near, same="answer")


def told(
    make_pair: MakePair, prompt: str, solution: str = "Answer: 2", reference: str = "2"
) -> Pair:
    pair = make_pair()
    texts = {"prompt": prompt, "solution": solution, "reference": reference}
    return replace(pair, input=replace(pair.input, **texts))


def add(store: SqlStore, pair: Pair, rules: AddRules = NEAR) -> AddPairResult:
    return store.add_pair(pair, band_keys=KEYS, rules=rules)


def num_bands(store: SqlStore) -> int:
    return int(
        store._database.read(
            lambda connection: connection.execute(
                text("SELECT count(*) FROM pair_bands")
            ).scalar_one()
        )
    )


def test_nearly_the_same_problem_with_the_same_solution_is_a_duplicate(
    store: SqlStore, make_pair: MakePair
) -> None:
    first = told(make_pair, "What is 1 + 1?")
    assert add(store, first).kind is AddPairKind.STORED
    again = add(store, told(make_pair, "WHAT IS 1 + 1?", solution="answer: 2"))
    assert (again.kind, again.pair) == (AddPairKind.NEAR_DUPLICATE, first)
    assert store.count_pairs().verified == 1
    assert num_bands(store) == 4


def test_another_solution_of_the_same_problem_is_no_duplicate_unless_told_so(
    store: SqlStore, make_pair: MakePair
) -> None:
    add(store, told(make_pair, "What is 1 + 1?"))
    other = told(make_pair, "what is 1 + 1?", solution="One and one makes two.")
    assert add(store, other, NEAR_ANSWER).kind is AddPairKind.NEAR_DUPLICATE
    assert add(store, other).kind is AddPairKind.STORED


def test_another_answer_is_no_duplicate(store: SqlStore, make_pair: MakePair) -> None:
    add(store, told(make_pair, "What is 1 + 1?"))
    other = told(make_pair, "what is 1 + 1?", reference="3")
    assert add(store, other, NEAR_ANSWER).kind is AddPairKind.STORED


def test_another_answer_is_no_duplicate_though_its_keys_meet(
    store: SqlStore, make_pair: MakePair
) -> None:
    first, other = (told(make_pair, "What is 1 + 1?", reference=text) for text in ("2", "3"))
    (mask,), (other_mask,) = stored_keys((0,), first.input), stored_keys((0,), other.input)
    store.add_pair(first, band_keys=(0,), rules=NEAR_ANSWER)
    meeting = (mask ^ other_mask,)
    assert store.add_pair(other, band_keys=meeting, rules=NEAR_ANSWER).kind is AddPairKind.STORED


def test_candidates_that_are_not_near_are_no_duplicates(
    store: SqlStore, make_pair: MakePair
) -> None:
    add(store, told(make_pair, "What is 1 + 1?"))
    assert add(store, told(make_pair, "What is 2 + 0?")).kind is AddPairKind.STORED


def test_a_templates_many_problems_cost_a_bounded_number_of_comparisons(
    store: SqlStore, make_pair: MakePair
) -> None:
    calls = count()
    seen: list[int] = []

    def never(a: str, b: str) -> bool:
        seen.append(next(calls))
        return False

    rules = AddRules(is_near_duplicate=never)
    for number in range(60):
        before = len(seen)
        add(store, told(make_pair, f"What is {number} - {number - 2}?"), rules)
        assert len(seen) - before <= MAX_CANDIDATES
    assert MAX_CANDIDATES >= CANDIDATES_PER_KEY


def test_of_many_at_once_one_near_duplicate_is_stored(store: SqlStore, make_pair: MakePair) -> None:
    pairs = [
        told(make_pair, "WHAT is it?" if number % 2 else "what is it?") for number in range(40)
    ]
    with ThreadPoolExecutor(16) as threads:
        kinds = [result.kind for result in threads.map(lambda pair: add(store, pair), pairs)]
    assert kinds.count(AddPairKind.STORED) == 1
    assert kinds.count(AddPairKind.NEAR_DUPLICATE) == 39


def test_a_batch_is_as_if_one_after_the_other(store_url: str, make_pair: MakePair) -> None:
    known = told(make_pair, "What is known?")
    new = told(make_pair, "What is new?")
    batch = [
        told(make_pair, "WHAT IS KNOWN?"),
        new,
        new,
        replace(new, input=replace(new.input, id=make_pair().input.id)),
        replace(make_pair(), input=replace(make_pair().input, id=new.input.id)),
        told(make_pair, "what is NEW?"),
        told(make_pair, "What is last?"),
    ]
    rules = replace(NEAR, quota=Quota(pairs_stored=3))
    store = open_store(store_url)
    add(store, known, rules)
    results = store.add_pairs([NewPair(pair, KEYS) for pair in batch], rules=rules)
    assert [result.kind for result in results] == [
        AddPairKind.NEAR_DUPLICATE,
        AddPairKind.STORED,
        AddPairKind.ALREADY_STORED,
        AddPairKind.DUPLICATE,
        AddPairKind.ID_CONFLICT,
        AddPairKind.NEAR_DUPLICATE,
        AddPairKind.STORED,
    ]
    assert (results[0].pair, results[5].pair) == (known, new)
    over = store.add_pairs([NewPair(told(make_pair, "One too many"), KEYS)], rules=rules)
    assert over[0].kind is AddPairKind.OVER_QUOTA
    assert store.count_pairs().verified == 3
    assert {pair.input.id for pair in store.trainable_pairs()} == {
        known.input.id,
        new.input.id,
        batch[-1].input.id,
    }
    store.close()


def test_a_large_batch_keeps_its_order(store: SqlStore, make_pair: MakePair) -> None:
    pairs = [make_pair() for _ in range(1203)]
    store.add_pairs([NewPair(pair, (number,)) for number, pair in enumerate(pairs)], rules=NEAR)
    assert store.trainable_pairs() == pairs
    assert num_bands(store) == 1203
    seqs = [seq for seq, _ in store.scan_pairs(after_seq=0, limit=2000)]
    assert seqs == sorted(seqs)


def test_pairs_stored_without_bands_get_them(store: SqlStore, make_pair: MakePair) -> None:
    old = told(make_pair, "What is old?")
    store.add_pair(old)
    assert add(store, told(make_pair, "WHAT IS OLD?")).kind is AddPairKind.STORED
    [(_, found)] = store.pairs_without_bands(10)
    assert found == old
    for _ in range(2):
        store.set_bands([(old.input.id, KEYS)])
    assert store.pairs_without_bands(10) == []
    store.purge_pairs(PairFilter(ids=(store.trainable_pairs()[1].input.id,)))
    assert add(store, told(make_pair, "what is old?")).pair == old


@pytest.mark.parametrize(
    ("quota", "stored", "message"),
    [
        (Quota(pairs_per_day=3), 3, r"'ana' has stored 3 pairs today.*is 3: .* after 1970-01-02"),
        (Quota(bytes_per_day=40), 2, r"has stored 40 bytes today, this pair has 20"),
        (Quota(pairs_stored=4), 4, r"has 4 pairs in the store.*does not reset"),
    ],
)
def test_over_its_quota_a_submitter_stores_nothing(
    store: SqlStore, make_pair: MakePair, quota: Quota, stored: int, message: str
) -> None:
    rules = AddRules(quota=quota)
    results = [store.add_pair(told(make_pair, f"prompt {n:03}"), rules=rules) for n in range(6)]
    kinds = [result.kind for result in results]
    assert kinds == [AddPairKind.STORED] * stored + [AddPairKind.OVER_QUOTA] * (6 - stored)
    assert re.search(message, results[-1].detail)
    assert store.count_pairs().verified == stored
    bob = replace(told(make_pair, "prompt 007"), submitter="bob")
    assert store.add_pair(bob, rules=rules).kind is AddPairKind.STORED
    exempt = AddRules(quota=replace(quota, exempt=frozenset({"ana"})))
    assert store.add_pair(told(make_pair, "p"), rules=exempt).kind is AddPairKind.STORED


def test_what_is_not_stored_is_not_charged(store: SqlStore, make_pair: MakePair) -> None:
    rules = AddRules(quota=Quota(pairs_per_day=2))
    pair = told(make_pair, "one")
    for _ in range(5):
        store.add_pair(pair, rules=rules)
    assert store.quota_use("ana").pairs_today == 1
    assert store.add_pair(told(make_pair, "two"), rules=rules).kind is AddPairKind.STORED


def test_a_day_later_the_day_begins_anew(store_url: str, make_pair: MakePair) -> None:
    now = [86400.0 * 100 - 1]
    store = open_store(store_url, clock=lambda: now[0])
    rules = AddRules(quota=Quota(pairs_per_day=1))
    assert store.add_pair(told(make_pair, "one"), rules=rules).kind is AddPairKind.STORED
    refused = store.add_pair(told(make_pair, "two"), rules=rules)
    assert refused.kind is AddPairKind.OVER_QUOTA
    assert store.quota_use("ana").resets_unix_s == 86400.0 * 100
    now[0] += 1
    assert store.add_pair(told(make_pair, "two"), rules=rules).kind is AddPairKind.STORED
    store.close()


def test_many_streams_do_not_overshoot_a_quota(store: SqlStore, make_pair: MakePair) -> None:
    rules = AddRules(quota=Quota(pairs_per_day=25))
    pairs = [told(make_pair, f"prompt {number}") for number in range(100)]
    with ThreadPoolExecutor(32) as threads:
        kinds = [
            result.kind for result in threads.map(lambda p: store.add_pair(p, rules=rules), pairs)
        ]
    assert kinds.count(AddPairKind.STORED) == 25
    assert store.count_pairs().verified == store.quota_use("ana").pairs_today == 25


def test_a_purge_frees_a_quota_of_stored_pairs(store: SqlStore, make_pair: MakePair) -> None:
    rules = AddRules(quota=Quota(pairs_stored=1))
    pair = told(make_pair, "one")
    store.add_pair(pair, rules=rules)
    store.purge_pairs(PairFilter(ids=(pair.input.id,)))
    assert store.add_pair(told(make_pair, "two"), rules=rules).kind is AddPairKind.STORED
    assert store.add_pair(pair, rules=rules).kind is AddPairKind.PURGED
    assert store.get_pair(pair.input.id).status is PairStatus.PURGED
