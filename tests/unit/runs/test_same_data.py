"""A run on the very data of another run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsd.daemon.errors import InvalidInputError, NotFoundError, StateError
from opsd.daemon.types.runs import RunState
from opsd.daemon.types.text import prompt_key

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab


async def test_the_shard_is_the_same_whatever_came_since(lab: Lab) -> None:
    first = await lab.run()
    newest = lab.store.pairs[-1]
    lab.store.pairs.append(replace(newest, input=replace(newest.input, id="0" * 36)))
    second = await lab.run(same_data_as=first.id[:8])
    assert second.state is RunState.AWAITING_APPROVAL
    assert (second.same_data_as, second.num_pairs) == (first.id, 40)
    shards = [Path(run.run_dir) / "shard.jsonl" for run in (first, second)]
    assert shards[0].read_bytes() == shards[1].read_bytes()
    refs = [json.loads(run.spec_json)["shard"] for run in (first, second)]
    assert refs[0]["sha256"] == refs[1]["sha256"]
    assert refs[1]["path"] == str(shards[1])
    assert lab.store.snapshots[first.id] == lab.store.snapshots[second.id]


async def test_runs_may_be_queued_before_the_data_is_fixed(lab: Lab) -> None:
    lab.scenario("ok")
    controller = await lab.started()
    first = await lab.trigger(controller)
    second = await lab.trigger(controller, same_data_as=first.id)
    third = await lab.trigger(controller, same_data_as=second.id)
    for run in (first, second, third):
        assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL
    assert len(set(lab.store.snapshots.values())) == 1


async def test_a_run_that_never_had_data_is_named(lab: Lab) -> None:
    lab.scenario("ok")
    controller = await lab.started()
    first = await lab.trigger(controller)
    lab.store.pairs = []
    second = await lab.trigger(controller, same_data_as=first.id)
    for run in (first, second):
        run = await lab.settled(controller, run)
        assert run.state is RunState.FAILED
    assert f"run {first.id} is failed" in run.error
    assert "0 verified pairs" in run.error
    with pytest.raises(StateError, match="has no shard"):
        await lab.trigger(controller, same_data_as=first.id)
    with pytest.raises(NotFoundError):
        await lab.trigger(controller, same_data_as="nobody")


async def test_a_shard_that_is_gone_or_changed_fails_the_run(lab: Lab) -> None:
    first = await lab.run()
    shard = Path(first.run_dir) / "shard.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"What is 3+1?", b"What is 3+2?"))
    run = await lab.run(same_data_as=first.id)
    assert f"the shard of run {first.id} is no longer what that run trained on" in run.error
    shard.unlink()
    run = await lab.run(same_data_as=first.id)
    assert f"the shard of run {first.id} cannot be read" in run.error
    assert "put the file back" in run.error


async def test_data_that_became_held_out_is_refused(lab: Lab) -> None:
    first = await lab.run()
    lab.held_out.keys = {prompt_key("What is 3+1?")}
    run = await lab.run(same_data_as=first.id)
    assert run.state is RunState.FAILED
    assert "1 pairs have become held-out problems" in run.error


async def test_another_source_is_another_data(lab: Lab) -> None:
    lab.store.pairs = [
        replace(pair, input=replace(pair.input, source="tutors")) for pair in lab.store.pairs
    ]
    first = await lab.run(source="tutors")
    controller = lab.controllers[-1]
    with pytest.raises(InvalidInputError, match=r"'users'.*trained on 'tutors'"):
        await lab.trigger(controller, same_data_as=first.id, source="users")
    run = await lab.trigger(controller, same_data_as=first.id)
    assert run.source == "tutors"
    run = await lab.trigger(controller, same_data_as=first.id, source="tutors")
    assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL


async def test_a_plan_is_checked_and_queues_nothing(lab: Lab) -> None:
    controller = await lab.started()
    spec = await controller.plan(overrides_json='{"optim": {"num_steps": 7}}')
    assert (spec.optim.num_steps, spec.optim.warmup_steps) == (7, 1)
    assert (spec.run_id, spec.output_dir, spec.HasField("shard")) == ("", "", True)
    assert lab.store.runs == {}
    with pytest.raises(InvalidInputError, match="warmup_steps"):
        await controller.plan(overrides_json='{"optim": {"warmup_steps": 70}}')
    with pytest.raises(NotFoundError):
        await controller.plan(same_data_as="nobody")
    lab.store.pairs = []
    with pytest.raises(StateError, match="0 verified pairs"):
        await controller.plan()
