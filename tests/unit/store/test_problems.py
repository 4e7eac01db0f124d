"""Problems, outcomes of attempts and provenance, on both databases."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import uuid4

import pytest

from opsd.daemon.errors import ConflictError, NotFoundError
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.pairs import Attempt, Origin, Pair, PairStatus
from opsd.daemon.types.problems import (
    AddProblemKind,
    Answerable,
    AttemptOutcomeKind,
    Problem,
    ProblemInput,
    ProblemState,
    Provenance,
    Round,
)

MakePair = Callable[..., Pair]
ACCEPTED, REJECTED = AttemptOutcomeKind.ACCEPTED, AttemptOutcomeKind.REJECTED


def make_problem(
    content: str = "", *, reference: str = "2", priority: int = 0, **fields: object
) -> Problem:
    content = content or uuid4().hex
    problem = Problem(
        input=ProblemInput(
            str(uuid4()), f"prompt {content}", "numeric", reference, priority=priority
        ),
        submitter="ana",
        created_unix_s=1.0,
        content_sha256=content,
        prompt_key=f"key {content}",
    )
    return replace(problem, **fields)  # type: ignore[arg-type]


def add_attempt(store: SqlStore, adapter: str = "opsd-a") -> str:
    attempt = Attempt(str(uuid4()), "r", adapter, "p", "c", 1, 1.0)
    store.add_attempts([attempt])
    return attempt.id


def test_a_problem_is_stored_once(store: SqlStore) -> None:
    problem = make_problem("x")
    assert store.add_problem(problem).kind is AddProblemKind.STORED
    assert store.add_problem(problem).kind is AddProblemKind.ALREADY_STORED
    copy = make_problem("x")
    result = store.add_problem(copy)
    assert (result.kind, result.problem.input.id) == (AddProblemKind.DUPLICATE, problem.input.id)
    taken = replace(make_problem("y"), input=replace(problem.input, prompt="other"))
    assert store.add_problem(taken).kind is AddProblemKind.ID_CONFLICT
    stored = store.get_problem(problem.input.id)
    assert stored == replace(problem, seq=stored.seq, updated_unix_s=1.0)
    with pytest.raises(NotFoundError, match="no problem 'nothing'"):
        store.get_problem("nothing")


def test_what_is_due_and_in_which_order(store: SqlStore) -> None:
    old, new = make_problem(), make_problem()
    urgent = make_problem(priority=3)
    later = make_problem(next_try_unix_s=50.0)
    solved = make_problem(state=ProblemState.SOLVED)
    unknown = make_problem(reference="")
    own = make_problem(reference="", origin=Origin.SELF_PLAY)
    for problem in (old, new, urgent, later, solved, unknown, own):
        store.add_problem(problem)

    def due(answerable: Answerable, now: float = 10.0, limit: int = 9) -> list[str]:
        found = store.due_problems(answerable, now_unix_s=now, limit=limit)
        return [problem.input.id for problem in found]

    assert due(Answerable.KNOWN) == [urgent.input.id, old.input.id, new.input.id]
    assert due(Answerable.KNOWN, limit=1) == [urgent.input.id]
    assert later.input.id in due(Answerable.KNOWN, now=50.0)
    assert due(Answerable.UNKNOWN) == [unknown.input.id]
    assert due(Answerable.SELF_POSED) == [own.input.id]
    assert store.count_open_problems() == {
        Answerable.KNOWN: 4,
        Answerable.UNKNOWN: 1,
        Answerable.SELF_POSED: 1,
    }


def test_rounds_add_up_and_survive_a_restart(store_url: str) -> None:
    problem = make_problem()
    store = open_store(store_url)
    store.add_problem(problem)
    key = problem.input.id
    store.record_round(Round(key, 4, 0, ProblemState.OPEN, "in vain", next_try_unix_s=9.0))
    store.close()
    store = open_store(store_url)
    done = store.record_round(Round(key, 4, 2, ProblemState.SOLVED, "", pair_id="p"))
    assert (done.attempts, done.solves, done.tries, done.pair_id) == (8, 2, 2, "p")
    # Whatever comes late, what is solved stays solved.
    done = store.record_round(Round(key, 4, 0, ProblemState.GIVEN_UP, "late"))
    assert (done.state, done.pair_id, done.attempts) == (ProblemState.SOLVED, "p", 12)
    with pytest.raises(NotFoundError):
        store.record_round(Round("nothing", 1, 0, ProblemState.OPEN, ""))
    store.close()


def test_problems_in_pages_and_in_order(store: SqlStore) -> None:
    for number in range(5):
        store.add_problem(
            make_problem(state=ProblemState.SOLVED if number == 3 else ProblemState.OPEN)
        )
    page = store.list_problems(limit=2)
    assert (len(page.items), page.total) == (2, 5)
    assert len(store.list_problems(limit=9, token=page.next_token).items) == 3
    assert store.list_problems(limit=9, state=ProblemState.SOLVED).total == 1
    seqs = [problem.seq for problem in store.problems_after(0, limit=9)]
    assert seqs == sorted(seqs)
    assert [p.seq for p in store.problems_after(seqs[1], limit=2)] == seqs[2:4]


def test_known_prompts_are_those_of_pairs_and_problems(
    store: SqlStore, make_pair: MakePair
) -> None:
    store.add_problem(make_problem("x"))
    store.add_pair(make_pair("y", prompt_key="key y"))
    assert store.known_prompts(["key x", "key y", "key z"]) == {"key x", "key y"}


def test_the_first_outcome_of_an_attempt_stands(store: SqlStore) -> None:
    attempt_id = add_attempt(store, "opsd-b")
    stored, is_new = store.add_attempt_outcome(
        attempt_id, ACCEPTED, reporter="ci", verified=False, comment="\x00 ran"
    )
    assert is_new
    assert (stored.adapter, stored.reporter, stored.comment) == ("opsd-b", "ci", "\ufffd ran")
    again, is_new = store.add_attempt_outcome(attempt_id, ACCEPTED, reporter="me", verified=False)
    assert (again, is_new) == (stored, False)
    with pytest.raises(ConflictError, match="accepted already, by 'ci'"):
        store.add_attempt_outcome(attempt_id, REJECTED, reporter="me", verified=False)
    store.add_attempt_outcome(attempt_id, REJECTED, reporter="me", verified=True)
    assert [o.verified for o in store.attempt_outcomes_since(0)] == [False, True]
    with pytest.raises(NotFoundError, match="no attempt"):
        store.add_attempt_outcome("nothing", ACCEPTED, reporter="ci", verified=False)


def test_outcomes_can_be_followed(store: SqlStore) -> None:
    attempts = [(add_attempt(store, f"opsd-{number % 2}")) for number in range(6)]

    def report(attempt_id: str) -> None:
        store.add_attempt_outcome(attempt_id, ACCEPTED, reporter="ci", verified=False)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(report, attempts * 2))
    seen, last = [], 0
    while found := store.attempt_outcomes_since(last, limit=4):
        seen += [outcome.attempt_id for outcome in found]
        last = found[-1].seq
    assert sorted(seen) == sorted(attempts)
    assert len(store.attempt_outcomes_since(0, adapter="opsd-1")) == 3
    assert len(store.attempt_outcomes_since(0, attempt_id=attempts[0])) == 1


def test_provenance_is_written_once_and_counted(store: SqlStore) -> None:
    made = Provenance("p1", Origin.SELF_PLAY, "q", "base", '{"a": 1}', 100.0)
    store.add_provenance(made)
    store.add_provenance(replace(made, detail_json="{}"))
    store.add_provenance(replace(made, pair_id="p2", created_unix_s=200.0))
    assert store.count_provenance(Origin.SELF_PLAY, since_unix_s=0.0) == 2
    assert store.count_provenance(Origin.SELF_PLAY, since_unix_s=150.0) == 1
    assert store.count_provenance(Origin.OWN_ATTEMPT, since_unix_s=0.0) == 0


def test_pairs_come_in_order_with_their_provenance(store: SqlStore, make_pair: MakePair) -> None:
    pairs = [make_pair(source="a" if number % 2 else "b") for number in range(5)]
    for pair in pairs:
        store.add_pair(pair)
    bad = make_pair(status=PairStatus.UNVERIFIED)
    store.add_pair(bad)
    given = pairs[0].input
    store.add_provenance(Provenance(given.id, Origin.OWN_ATTEMPT, "q", "base", '{"a": 1}', 1.0))
    found = store.pairs_after(0, limit=9)
    assert [stored.pair.input.id for stored in found] == [p.input.id for p in [*pairs, bad]]
    assert [stored.provenance_json for stored in found[:2]] == ['{"a": 1}', ""]
    assert [s.seq for s in store.pairs_after(found[1].seq, limit=2)] == [s.seq for s in found[2:4]]
    assert len(store.pairs_after(0, limit=9, status=PairStatus.UNVERIFIED)) == 1
    assert len(store.pairs_after(0, limit=9, source="a")) == 2
    assert store.pairs_after(0, limit=9, since_unix_s=1e9) == []


def test_which_pair_is_varied(store: SqlStore, make_pair: MakePair) -> None:
    assert store.pair_to_vary(0.5) is None
    pairs = [make_pair() for _ in range(4)]
    for pair in [*pairs, make_pair(status=PairStatus.UNVERIFIED)]:
        store.add_pair(pair)
    own = pairs[0].input.id
    store.add_provenance(Provenance(own, Origin.SELF_PLAY, "q", "base", "{}", 1.0))
    varied = [store.pair_to_vary(place / 100) for place in range(100)]
    ids = {pair.input.id for pair in varied if pair is not None}
    assert ids == {pair.input.id for pair in pairs[1:]}, "neither its own nor unverified ones"
