"""Self-play: what the model may pose to itself, when, and what stops it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError
from source_world import HELD_OUT_PROMPT, World

from opsd.daemon.collect.sources.consistency import Consistency
from opsd.daemon.collect.sources.pairs import PairMaker
from opsd.daemon.collect.sources.rounds import Rounds
from opsd.daemon.collect.sources.selfplay import SelfPlay, parse_proposal, similarity
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.config.sources import SelfPlayConfig
from opsd.daemon.types.ids import pair_id
from opsd.daemon.types.pairs import Origin, PairInput
from opsd.daemon.types.problems import Answerable, Provenance

SOLVED = "What is 1 + 1, when each apple weighs as much as a pear?"
VARIANT = "<problem>What is 5 - 3, when every plum costs a penny?</problem>"


def self_play(world: World, **fields: Any) -> SelfPlay:
    config = SelfPlayConfig(**{"samples": 6, "proposals": 1, **fields})
    maker = PairMaker(
        "self_play",
        Origin.SELF_PLAY,
        world.store,
        world.intake,
        daily_quota=config.daily_quota,
        clock=world.clock,
    )
    rounds = Rounds(
        Answerable.SELF_POSED,
        Consistency(world.sampler, world.verifier, maker, config, world.clock).attempt,
        store=world.store,
        held_out=world.held_out,
        maker=maker,
        config=config,
        clock=world.clock,
    )
    return SelfPlay(
        rounds,
        world.sampler,
        store=world.store,
        held_out=world.held_out,
        maker=maker,
        users=world.users,
        config=config,
        clock=world.clock,
        draw=lambda: 0.0,
    )


async def solved_pair(world: World, prompt: str = SOLVED) -> str:
    given = PairInput(
        pair_id(prompt, "Answer: 2", "numeric", "2"), prompt, "Answer: 2", "numeric", "2"
    )
    outcome = await world.intake.submit(given, "ana")
    assert outcome.label == "verified"
    world.intake.seen.clear()
    return given.id


def test_it_is_off_by_default() -> None:
    collect = OpsdConfig().collect
    assert not collect.self_play.enabled
    assert not collect.self_consistency.enabled
    assert not collect.harvest.enabled


@pytest.mark.parametrize("template", ["without a place", "{problem} twice {problem}"])
def test_the_template_has_one_place_for_the_problem(template: str) -> None:
    with pytest.raises(ValidationError, match="exactly once"):
        SelfPlayConfig(template=template)


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("<problem> 2+2? </problem>", "2+2?"),
        ("Sure!\n<problem>2+2?</problem> There.", "2+2?"),
        ("<think><problem>x</problem></think><problem>2+2?</problem>", "2+2?"),
        ("2+2?", None),
        ("<problem></problem>", None),
        ("<problem>1+1?</problem><problem>2+2?</problem>", None),
        ("<problem><problem>2+2?</problem>", None),
        ("</problem>2+2?<problem>", None),
        ("<problem>2+2?", None),
        (f"<problem>{'x' * 41}</problem>", None),
        ("<problem>a\0b</problem>", None),
    ],
)
def test_a_proposal_is_one_problem_in_its_tags(text: str, prompt: str | None) -> None:
    assert parse_proposal(text, max_chars=40) == prompt


def test_similarity() -> None:
    assert similarity("A b, c!", "c B a") == 1.0
    assert similarity("a b", "a c") == pytest.approx(1 / 3)


async def test_a_variant_is_posed_then_answered_by_agreement(world: World) -> None:
    parent = await solved_pair(world)
    posing = True

    def write(request: Any, number: int) -> str:
        asked = request.messages[0].content
        return VARIANT if SOLVED in asked else "they are Answer: 2"

    world.engine.write = write
    source = self_play(world)
    assert await source.step()
    assert posing
    (problem,) = world.store.list_problems(limit=9).items
    assert (problem.origin, problem.parent_id, problem.input.reference) == (
        Origin.SELF_PLAY,
        parent,
        "",
    )
    assert problem.input.prompt == "What is 5 - 3, when every plum costs a penny?"
    assert await source.step()
    ((given, submitter, origin),) = world.intake.seen
    assert (given.reference, submitter, origin) == ("2", "opsd:self-play", Origin.SELF_PLAY)
    stored = [p for p in world.store.pairs_after(0, limit=9) if p.pair.input.id == given.id]
    assert f'"parent": "{parent}"' in stored[0].provenance_json


@pytest.mark.parametrize(
    ("written", "refused"),
    [
        (HELD_OUT_PROMPT, "held_out"),
        (f"{HELD_OUT_PROMPT.upper()}!", "held_out"),
        (SOLVED, "copy"),
        (SOLVED.replace("What is ", "what IS: "), "copy"),
        ("Known already: three and four?", "known"),
        ("?!", "malformed"),
    ],
)
async def test_what_may_not_be_posed(world: World, written: str, refused: str) -> None:
    await solved_pair(world)
    world.add("Known already: three and four?")
    before = world.store.list_problems(limit=9).total
    world.engine.write = lambda request, number: f"<problem>{written}</problem>"
    source = self_play(world)
    assert (await source._judged(SOLVED, f"<problem>{written}</problem>")).refused == refused
    assert not await source.step()
    assert world.store.list_problems(limit=9).total == before


async def test_it_waits_until_users_are_away(world: World) -> None:
    await solved_pair(world)
    source = self_play(world, idle_after_s=60.0)
    world.users.idle = 59.0
    assert not await source.step()
    world.users.in_flight, world.users.idle = 1, 100.0
    assert not await source.step()
    assert world.engine.requests == []


async def test_users_end_it_within_a_tick_and_nothing_counts(world: World) -> None:
    await solved_pair(world)
    world.add("What is 8 - 6 with plums?", reference="", origin=Origin.SELF_PLAY)
    world.engine.hold = asyncio.Event()
    source = self_play(world)
    step = asyncio.create_task(source.step())
    while world.engine.running < 6:  # noqa: ASYNC110 - a fake, no event
        await asyncio.sleep(0)
    world.users.in_flight = 1
    assert not await step
    assert (world.engine.running, world.incumbents.held) == (0, 0)
    (problem,) = world.store.list_problems(limit=9).items
    assert (problem.tries, problem.attempts) == (0, 0)
    assert "users" in source.doing
    # Away again: the same round is made after all.
    world.users.in_flight = 0
    world.engine.hold = None
    world.engine.write = lambda request, number: "Answer: 2"
    assert await source.step()
    assert [origin for _, _, origin in world.intake.seen] == [Origin.SELF_PLAY]


async def test_variants_of_variants_are_not_posed(world: World) -> None:
    pair = await solved_pair(world)
    world.store.add_provenance(Provenance(pair, Origin.SELF_PLAY, "p", "base", "{}", 1.0))
    source = self_play(world)
    assert not await source.step()
    assert "no verified pair" in source.doing


async def test_a_pair_that_is_held_out_by_now_is_not_shown_to_the_model(world: World) -> None:
    await solved_pair(world, "Nearly: " + SOLVED)
    source = self_play(world)
    source._held_out = type("All", (), {"is_held_out": lambda self, prompt: "late"})()
    assert not await source.step()
    assert world.engine.requests == []


async def test_the_quota_counts_its_own_pairs(world: World) -> None:
    await solved_pair(world)
    source = self_play(world, daily_quota=1)
    world.store.add_provenance(
        Provenance("x", Origin.SELF_PLAY, "p", "base", "{}", world.clock.now)
    )
    assert not await source.step()
    assert "its quota" in source.doing
