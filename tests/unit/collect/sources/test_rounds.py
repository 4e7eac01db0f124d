"""Harvest and self-consistency: what of the model's samples becomes a pair, and what never does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from source_world import HELD_OUT_PROMPT, INCUMBENT, World

from opsd.daemon.collect.intake import Outcome
from opsd.daemon.collect.sources.consistency import Consistency
from opsd.daemon.collect.sources.harvest import Harvest
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.collect.sources.rounds import Rounds
from opsd.daemon.config.sources import HarvestConfig, SelfConsistencyConfig
from opsd.daemon.errors import EngineError, InvalidInputError
from opsd.daemon.types.pairs import Origin, PairInput, PairStatus
from opsd.daemon.types.problems import Answerable, ProblemState


def harvest(world: World, **fields: Any) -> Rounds:
    config = HarvestConfig(**fields)
    maker = PairMaker(
        "harvest",
        Origin.OWN_ATTEMPT,
        world.store,
        world.intake,
        daily_quota=config.daily_quota,
        clock=world.clock,
    )
    attempt = Harvest(world.sampler, world.verifier, maker, config, world.clock).attempt
    return _rounds(world, Answerable.KNOWN, attempt, maker, config)


def consistency(world: World, **fields: Any) -> Rounds:
    config = SelfConsistencyConfig(**fields)
    maker = PairMaker(
        "self_consistency",
        Origin.SELF_CONSISTENCY,
        world.store,
        world.intake,
        daily_quota=config.daily_quota,
        clock=world.clock,
    )
    attempt = Consistency(world.sampler, world.verifier, maker, config, world.clock).attempt
    return _rounds(world, Answerable.UNKNOWN, attempt, maker, config)


def _rounds(world: World, answerable: Any, attempt: Any, maker: Any, config: Any) -> Rounds:
    return Rounds(
        answerable,
        attempt,
        store=world.store,
        held_out=world.held_out,
        maker=maker,
        config=config,
        clock=world.clock,
    )


async def test_the_shortest_verified_attempt_becomes_a_pair(world: World) -> None:
    problem = world.add()
    texts = ["that is wrong Answer: 3", "one and one make Answer: 2", "so Answer: 2", "Answer: 5"]
    world.engine.write = lambda request, number: texts[number]
    assert await harvest(world).step()
    ((given, submitter, origin),) = world.intake.seen
    assert (given.solution.strip(), given.reference, origin) == (
        "so Answer: 2",
        "2",
        Origin.OWN_ATTEMPT,
    )
    assert submitter == "opsd:harvest"
    stored = world.store.get_pair(given.id)
    assert stored.status is PairStatus.VERIFIED
    done = world.store.get_problem(problem.input.id)
    assert (done.state, done.attempts, done.solves, done.pair_id) == (
        ProblemState.SOLVED,
        4,
        2,
        given.id,
    )
    (exported,) = world.store.pairs_after(0, limit=9)
    detail = json.loads(exported.provenance_json)
    assert (detail["adapter"], detail["passed"], detail["attempts"]) == (INCUMBENT.name, 2, 4)
    assert not await harvest(world).step(), "what is solved is not due again"


async def test_the_first_verified_attempt_where_that_is_wanted(world: World) -> None:
    world.add()
    texts = ["one and one make Answer: 2", "Answer: 2"]
    world.engine.write = lambda request, number: texts[number]
    await harvest(world, samples=2, keep="first").step()
    assert world.intake.seen[0][0].solution.startswith("one and one")


async def test_samples_stay_below_everybody_and_are_of_the_incumbent(world: World) -> None:
    world.add()
    await harvest(world, samples=2, temperature=0.7).step()
    for request in world.engine.requests:
        assert request.priority > 20, "runs sample at 20, evaluation at 10, users at 0"
        assert request.adapter == INCUMBENT
        assert request.sampling.temperature == 0.7
    assert min(world.room.turns) > 1 << 40, "runs' turns are small numbers and go first"
    assert world.incumbents.held == 0
    seeds = {request.sampling.seed for request in world.engine.requests}
    assert len(seeds) == 2


async def test_a_problem_that_is_held_out_by_now_is_never_attempted(world: World) -> None:
    problem = world.add(HELD_OUT_PROMPT)
    assert await harvest(world).step()
    assert world.engine.requests == []
    assert world.store.get_problem(problem.input.id).state is ProblemState.HELD_OUT


async def test_a_sample_that_was_cut_off_is_no_solution(world: World) -> None:
    problem = world.add()
    world.engine.write = lambda request, number: "Answer: 2 for now"
    world.engine.cut_off_at = 2
    await harvest(world, max_tries=1).step()
    assert world.intake.seen == []
    assert world.store.get_problem(problem.input.id).state is ProblemState.GIVEN_UP


async def test_it_is_tried_again_later_and_then_given_up(world: World) -> None:
    problem = world.add()
    world.engine.write = lambda request, number: "Answer: 3"
    source = harvest(world, samples=3, max_tries=2, retry_after_s=100.0)
    assert await source.step()
    found = world.store.get_problem(problem.input.id)
    assert (found.state, found.tries, found.next_try_unix_s) == (
        ProblemState.OPEN,
        1,
        world.clock.now + 100.0,
    )
    assert not await source.step()
    world.clock.now += 100.0
    assert await source.step()
    found = world.store.get_problem(problem.input.id)
    assert (found.state, found.attempts, found.solves) == (ProblemState.GIVEN_UP, 6, 0)
    first, second = world.engine.requests[:3], world.engine.requests[3:]
    assert {r.sampling.seed for r in first}.isdisjoint({r.sampling.seed for r in second})


async def test_a_round_that_failed_is_drawn_again_as_it_was(world: World) -> None:
    problem = world.add()

    def fail(request: Any, number: int) -> str:
        if number == 1:
            raise EngineError("it died")
        return "Answer: 2"

    world.engine.write = fail
    source = harvest(world, samples=2)
    with pytest.raises(EngineError):
        await source.step()
    assert world.store.get_problem(problem.input.id).tries == 0
    assert world.incumbents.held == 0
    assert await source.step()
    seeds = [request.sampling.seed for request in world.engine.requests]
    assert seeds[:2] == seeds[2:]


async def test_a_prompt_that_the_engine_refuses_is_given_up_alone(world: World) -> None:
    long, good = world.add("long " * 9), world.add()

    def write(request: Any, number: int) -> str:
        if "long" in request.messages[0].content:
            raise InvalidInputError("the prompt is too long")
        return "Answer: 2"

    world.engine.write = write
    await harvest(world, samples=1).step()
    found = world.store.get_problem(long.input.id)
    assert (found.state, found.note) == (ProblemState.GIVEN_UP, "the prompt is too long")
    assert world.store.get_problem(good.input.id).state is ProblemState.SOLVED


async def test_the_quota_of_a_day_holds(world: World) -> None:
    for _ in range(3):
        world.add()
    source = harvest(world, samples=1, daily_quota=2)
    assert await source.step()
    assert not await source.step()
    assert len(world.intake.seen) == 2
    assert "its quota" in source.doing
    world.clock.now += 86_401.0
    assert await source.step()
    assert len(world.intake.seen) == 3


@pytest.mark.parametrize(
    ("label", "state"),
    [
        ("duplicate", ProblemState.SOLVED),
        ("held_out", ProblemState.HELD_OUT),
        ("refused_quota", ProblemState.OPEN),
        ("quarantined", ProblemState.REFUSED),
        ("unverified", ProblemState.REFUSED),
    ],
)
async def test_what_becomes_of_the_pair_becomes_of_the_problem(
    world: World, label: str, state: ProblemState, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def submit(given: PairInput, submitter: str, *, origin: Origin) -> Outcome:
        return Outcome(given.id, label, message="because", duplicate_of="other")

    monkeypatch.setattr(world.intake, "submit", submit)
    problem = world.add()
    await harvest(world, samples=1).step()
    found = world.store.get_problem(problem.input.id)
    assert found.state is state
    assert found.pair_id == ("other" if state is ProblemState.SOLVED else "")
    assert (found.next_try_unix_s > world.clock.now) == (state is ProblemState.OPEN)


async def test_higher_priority_goes_first(world: World) -> None:
    world.add("What is 1 + 1?")
    urgent = world.add("What is 3 - 1?", priority=5)
    await harvest(world, samples=1, problems_at_once=1).step()
    assert world.engine.requests[0].messages[0].content == urgent.input.prompt


async def test_a_clear_majority_becomes_the_reference(world: World) -> None:
    problem = world.add(reference="")
    texts = ["It is long but Answer: 9", *["Answer: 4"] * 5, "Answer: 4.0", "I do not know"]
    world.engine.write = lambda request, number: texts[number]
    source = consistency(world, samples=8, margin=0.5)
    assert await source.step()
    ((given, submitter, origin),) = world.intake.seen
    assert (given.reference, given.solution.strip(), origin) == (
        "4",
        "Answer: 4",
        Origin.SELF_CONSISTENCY,
    )
    assert submitter == "opsd:self-consistency"
    (exported,) = world.store.pairs_after(0, limit=9)
    detail = json.loads(exported.provenance_json)
    assert detail["answers"] == [["4", 6], ["9", 1]]
    assert (detail["samples"], detail["votes"], detail["lead"]) == (8, 7, 5 / 8)
    done = world.store.get_problem(problem.input.id)
    assert (done.state, done.solves, done.input.reference) == (ProblemState.SOLVED, 6, "")


async def test_without_a_clear_majority_nothing_is_said(world: World) -> None:
    problem = world.add(reference="")
    world.engine.write = lambda request, number: f"Answer: {number % 2}"
    await consistency(world, samples=8, max_tries=1).step()
    assert world.intake.seen == []
    found = world.store.get_problem(problem.input.id)
    assert found.state is ProblemState.GIVEN_UP
    assert "4 of 8 samples agree and 4 on the runner-up" in found.note
    assert world.store.pairs_after(0, limit=9) == []


async def test_a_cut_off_sample_has_no_vote(world: World) -> None:
    world.add(reference="")
    world.engine.write = lambda request, number: "Answer: 4 it is"
    world.engine.cut_off_at = 2
    await consistency(world, samples=8, max_tries=1).step()
    assert world.intake.seen == []


async def test_known_and_unknown_answers_are_not_mixed_up(world: World) -> None:
    world.add(reference="2")
    assert not await consistency(world).step()
    world.add("What is 9 - 7?", reference="")
    world.engine.write = lambda request, number: "Answer: 2"
    await harvest(world, samples=1).step()
    assert [origin for _, _, origin in world.intake.seen] == [Origin.OWN_ATTEMPT]
