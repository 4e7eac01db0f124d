"""What a run is made of: newest and random, capped, each problem once, the same every time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opsd.daemon.store.draw_plan import Cell, Taken, allocate, excess, largest_batch, whole
from opsd.daemon.store.sql import SqlStore
from opsd.daemon.types.pair_sets import Draw, DrawPolicy, NewPair
from opsd.daemon.types.pairs import Origin, Pair, PairStatus
from opsd.daemon.types.text import prompt_key

MakePair = Callable[..., Pair]


def nothing(keys: Sequence[str]) -> set[str]:
    return set()


def fill(
    store: SqlStore,
    make_pair: MakePair,
    number: int,
    *,
    submitter: str = "ana",
    origin: Origin = Origin.SUBMITTED,
    source: str = "",
    status: PairStatus = PairStatus.VERIFIED,
) -> list[Pair]:
    pairs = [
        replace(make_pair(source=source, status=status), submitter=submitter, origin=origin)
        for _ in range(number)
    ]
    store.add_pairs([NewPair(pair) for pair in pairs])
    return pairs


def draw(store: SqlStore, policy: DrawPolicy, run_id: str = "run", source: str = "") -> Draw:
    return store.draw_pairs(run_id, policy, source=source, held_out=nothing)


def ids(draw: Draw) -> list[str]:
    return [pair.input.id for pair in draw.pairs]


def test_the_newest_go_in_and_the_rest_is_drawn_from_all(
    store: SqlStore, make_pair: MakePair
) -> None:
    pairs = fill(store, make_pair, 400)
    order = [pair.input.id for pair in pairs]
    drawn = draw(store, DrawPolicy(40, recency=0.25))
    assert len(set(ids(drawn))) == 40
    assert ids(drawn)[-10:] == order[-10:]
    older = [order.index(id) for id in ids(drawn)[:-10]]
    assert older == sorted(older)
    assert older[0] < 150, "30 of 390, none of them among the older half: not a draw from all"
    assert drawn.num_available == 400


def test_recency_of_one_is_the_newest_and_of_zero_is_random(
    store: SqlStore, make_pair: MakePair
) -> None:
    order = [pair.input.id for pair in fill(store, make_pair, 200)]
    assert ids(draw(store, DrawPolicy(20, recency=1.0))) == order[-20:]
    assert ids(draw(store, DrawPolicy(20, recency=0.0))) != order[-20:]


def test_the_same_run_draws_the_same_and_another_run_another(
    store: SqlStore, make_pair: MakePair
) -> None:
    fill(store, make_pair, 300)
    policy = DrawPolicy(30, recency=0.0)
    assert ids(draw(store, policy, "a")) == ids(draw(store, policy, "a"))
    assert ids(draw(store, policy, "a")) != ids(draw(store, policy, "b"))


def test_a_store_smaller_than_a_batch_is_drawn_whole(store: SqlStore, make_pair: MakePair) -> None:
    pairs = fill(store, make_pair, 97) + fill(store, make_pair, 3, submitter="bob")
    fill(store, make_pair, 5, status=PairStatus.UNVERIFIED)
    fill(store, make_pair, 5, status=PairStatus.QUARANTINED)
    drawn = draw(store, DrawPolicy(1000))
    assert ids(drawn) == [pair.input.id for pair in pairs]
    assert drawn.pairs[0] == pairs[0]


def test_every_pair_has_the_same_chance(store: SqlStore, make_pair: MakePair) -> None:
    fill(store, make_pair, 120, source="a")
    fill(store, make_pair, 40, source="b", submitter="bob")
    hits: Counter[str] = Counter()
    for number in range(60):
        hits.update(ids(draw(store, DrawPolicy(40, recency=0.0), f"run {number}")))
    # 15 expected of each. The standard deviation is 5.8: 3.4 of the draws, 4.7 of the gaps between
    # the pairs' random numbers, ten of which a draw of the smaller source covers.
    assert len(hits) >= 156
    assert max(hits.values()) < 45


def test_one_source_alone(store: SqlStore, make_pair: MakePair) -> None:
    wanted = {pair.input.id for pair in fill(store, make_pair, 30, source="a")}
    fill(store, make_pair, 300, source="b")
    drawn = draw(store, DrawPolicy(20), source="a")
    assert len(drawn.pairs) == 20
    assert set(ids(drawn)) <= wanted
    assert draw(store, DrawPolicy(20), source="c") == Draw((), 0, 0, 0)


def test_no_submitter_has_more_than_its_share_of_the_batch(
    store: SqlStore, make_pair: MakePair
) -> None:
    fill(store, make_pair, 40, submitter="bob")
    fill(store, make_pair, 60, submitter="cy")
    fill(store, make_pair, 900, submitter="flood")
    for limit in (1000, 50, 7):
        drawn = draw(store, DrawPolicy(limit, max_submitter_share=0.4))
        shares = Counter(pair.submitter for pair in drawn.pairs)
        assert max(shares.values()) <= 0.4 * len(drawn.pairs)
    assert len(draw(store, DrawPolicy(50, max_submitter_share=0.4)).pairs) == 50
    # 66 = 40 + 13 + 13 would have 40 of bob's; the most is 26 of 66 for each of the other two.
    assert len(draw(store, DrawPolicy(1000, max_submitter_share=0.4)).pairs) >= 160


def test_a_lone_submitter_fills_no_batch_under_a_cap(store: SqlStore, make_pair: MakePair) -> None:
    fill(store, make_pair, 50)
    assert draw(store, DrawPolicy(20, max_submitter_share=0.5)).pairs == ()


def test_what_the_model_made_itself_is_capped_together(
    store: SqlStore, make_pair: MakePair
) -> None:
    fill(store, make_pair, 30)
    fill(store, make_pair, 200, submitter="opsd", origin=Origin.SELF_PLAY)
    fill(store, make_pair, 200, submitter="opsd", origin=Origin.SELF_CONSISTENCY)
    drawn = draw(store, DrawPolicy(400, max_self_made_share=0.25))
    made = sum(pair.origin is not Origin.SUBMITTED for pair in drawn.pairs)
    assert (len(drawn.pairs), made) == (40, 10)
    own = draw(store, DrawPolicy(400, max_self_made_share=0)).pairs
    assert {pair.origin for pair in own} == {Origin.SUBMITTED}


def test_caps_hold_for_what_comes_out(store: SqlStore, make_pair: MakePair) -> None:
    """Counts promise 50 pairs of bob's, but all are one problem."""
    fill(store, make_pair, 50)
    same = [
        replace(
            pair := make_pair(),
            submitter="bob",
            input=replace(pair.input, prompt="What is 1 + 1?"),
            prompt_key=prompt_key("What is 1 + 1?"),
        )
        for _ in range(50)
    ]
    store.add_pairs([NewPair(pair) for pair in same])
    drawn = draw(store, DrawPolicy(100, max_submitter_share=0.5))
    assert Counter(pair.submitter for pair in drawn.pairs) == {"ana": 1, "bob": 1}


@pytest.mark.parametrize("recency", [0.0, 0.5, 1.0])
def test_of_a_problem_with_several_solutions_the_newest_goes_in(
    store: SqlStore, make_pair: MakePair, recency: float
) -> None:
    newest: list[str] = []
    for _ in range(3):
        newest = []
        for number in range(40):
            pair = make_pair()
            prompt = f"What is {number} + 1?"
            pair = replace(
                pair,
                input=replace(pair.input, prompt=prompt),
                prompt_key=prompt_key(prompt),
            )
            store.add_pair(pair)
            newest.append(pair.input.id)
    drawn = draw(store, DrawPolicy(100, recency=recency))
    assert ids(drawn) == newest


def test_nobody_keeps_out_anothers_pair_by_answering_it_again(
    store: SqlStore, make_pair: MakePair
) -> None:
    old = fill(store, make_pair, 20)
    fill(store, make_pair, 20, submitter="cy")
    again = [
        replace(
            other := make_pair(),
            submitter="mallory",
            input=replace(other.input, prompt=pair.input.prompt),
            prompt_key=pair.prompt_key,
        )
        for pair in old
    ]
    store.add_pairs([NewPair(pair) for pair in again])
    drawn = draw(store, DrawPolicy(30, recency=0.0, max_submitter_share=0.34))
    shares = Counter(pair.submitter for pair in drawn.pairs)
    assert max(shares.values()) <= 0.34 * len(drawn.pairs)
    assert shares["ana"] > 0


def test_the_place_of_what_is_held_out_is_filled(store: SqlStore, make_pair: MakePair) -> None:
    pairs = fill(store, make_pair, 100)
    refused = {pair.input.prompt for pair in pairs[:50]}

    def held_out(prompts: Sequence[str]) -> set[str]:
        return refused & set(prompts)

    drawn = store.draw_pairs("run", DrawPolicy(40), held_out=held_out)
    assert len(drawn.pairs) == 40
    assert not {pair.input.prompt for pair in drawn.pairs} & refused
    assert drawn.last_seq >= 100


def test_no_held_out_problem_gets_in_under_a_stale_key(
    store: SqlStore, make_pair: MakePair
) -> None:
    """The stored key says that they are one problem; the newest is a held-out one."""
    fine = replace(make_pair(), prompt_key="stale")
    other = make_pair()
    held = replace(other, input=replace(other.input, prompt="What is 2 + 2?"), prompt_key="stale")
    store.add_pairs([NewPair(fine), NewPair(held)])
    refused = {"What is 2 + 2?"}
    for run_id in "abcdef":
        drawn = store.draw_pairs(
            run_id, DrawPolicy(1, recency=0.0), held_out=lambda prompts: refused & set(prompts)
        )
        assert [pair.input.id for pair in drawn.pairs] == [fine.input.id]


cells = st.builds(Cell, st.sampled_from("abcd"), st.booleans())
shares = st.sampled_from([0.1, 0.25, 0.34, 0.5, 0.9, 1.0])


@settings(deadline=None)
@given(st.dictionaries(cells, st.integers(1, 60)), st.integers(1, 100), shares, shares)
def test_the_largest_batch_is_possible_and_no_larger_one_is(
    available: dict[Cell, int], limit: int, submitter_share: float, self_made_share: float
) -> None:
    drawn = [cell for cell, number in available.items() for _ in range(number)]

    def holds(size: int) -> bool:
        caps = largest_batch(available, size, submitter_share, self_made_share)
        return caps.size == size

    size = largest_batch(available, limit, submitter_share, self_made_share).size
    assert size == 0 or holds(size)
    assert not any(holds(larger) for larger in range(size + 1, limit + 1))
    dropped = excess(drawn, submitter_share, self_made_share)
    kept = [cell for place, cell in enumerate(drawn) if place not in dropped]
    counts = Counter(cell.submitter for cell in kept)
    assert all(number <= submitter_share * len(kept) + 1e-6 for number in counts.values())
    assert sum(cell.is_self_made for cell in kept) <= self_made_share * len(kept) + 1e-6


@settings(deadline=None)
@given(st.dictionaries(st.integers(0, 30), st.tuples(cells, st.integers(1, 60))), shares, shares)
def test_an_allocation_stays_within_the_caps(
    groups: dict[int, tuple[Cell, int]], submitter_share: float, self_made_share: float
) -> None:
    left = {key: number for key, (_, number) in groups.items()}
    of = {key: cell for key, (cell, _) in groups.items()}
    available: dict[Cell, int] = {}
    for cell, number in groups.values():
        available[cell] = available.get(cell, 0) + number
    caps = largest_batch(available, 50, submitter_share, self_made_share)
    wanted = allocate(left, of, Taken(), caps)
    assert all(wanted[key] <= left[key] + 1e-6 for key in wanted)
    assert sum(wanted.values()) <= caps.size + 1e-6
    assert sum(wanted[key] for key in wanted if of[key].is_self_made) <= caps.self_made + 1e-6
    for name in {cell.submitter for cell in of.values()}:
        mine = sum(wanted[key] for key in wanted if of[key].submitter == name)
        assert mine <= caps.per_submitter + 1e-6


@settings(deadline=None)
@given(st.dictionaries(st.integers(), st.floats(0, 9)), st.floats(0, 1, exclude_max=True))
def test_whole_numbers_keep_the_sum(wanted: dict[int, float], offset: float) -> None:
    found = whole(wanted, offset)
    assert abs(sum(found.values()) - sum(wanted.values())) <= 1 + 1e-6
    assert all(abs(found.get(key, 0) - number) < 1 + 1e-6 for key, number in wanted.items())
