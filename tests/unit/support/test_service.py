"""What a run may ask of the daemon, over the socket, and what it may not."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from opsd.daemon.errors import OverloadedError
from opsd.daemon.support.checks import MAX_ATTEMPTS
from opsd.daemon.support.sampling import PRIORITY, seed_at
from opsd.daemon.types.runs import RunState
from opsd.v1 import support_pb2 as pb

RUN_ID = "0a1b2c3d-0000-4000-8000-000000000000"
Code = grpc.StatusCode


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details() or ""


def attempts(*texts: str, verifier: str = "exact") -> pb.VerifyAttemptsRequest:
    return pb.VerifyAttemptsRequest(
        run_id=RUN_ID,
        attempts=[pb.AttemptToVerify(verifier=verifier, reference="4", text=t) for t in texts],
    )


async def until(holds: Any) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - looks from outside
            await asyncio.sleep(0.005)


# Verdicts


async def test_verdicts_come_in_the_order_of_the_attempts(support) -> None:
    answer = await support.stub.VerifyAttempts(attempts("4", "5", "?"))
    assert [(v.passed, v.failed_to_verify, v.evidence) for v in answer.verdicts] == [
        (True, False, "it is pass"),
        (False, False, "it is fail"),
        (False, True, "it is error"),
    ]


async def test_an_unknown_verifier_is_named(support) -> None:
    code, details = await refusal(support.stub.VerifyAttempts(attempts("4", verifier="oracle")))
    assert code is Code.INVALID_ARGUMENT
    assert "attempts[0].verifier: 'oracle'" in details
    assert "math" in details


async def test_too_many_attempts_are_refused(support) -> None:
    code, details = await refusal(
        support.stub.VerifyAttempts(attempts(*["4"] * (MAX_ATTEMPTS + 1)))
    )
    assert code is Code.INVALID_ARGUMENT
    assert "send several" in details


async def test_the_verifiers_refusal_keeps_its_status(support) -> None:
    support.verifiers.error = OverloadedError("4096 wait already")
    code, details = await refusal(support.stub.VerifyAttempts(attempts("4")))
    assert (code, details) == (Code.RESOURCE_EXHAUSTED, "4096 wait already")


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.EVALUATING, RunState.CANCELLED])
async def test_only_a_run_that_trains_is_supported(support, state) -> None:
    support.rows.move(state)
    for call in (
        support.stub.VerifyAttempts(attempts("4")),
        support.stub.LoadStudent(support.write(1)),
        support.sample(),
    ):
        code, details = await refusal(call)
        assert code is Code.FAILED_PRECONDITION
        assert f"is {state}" in details


async def test_a_run_is_named_in_full(support) -> None:
    for run_id in ("nobody", RUN_ID[:8]):
        request = pb.VerifyAttemptsRequest(run_id=run_id)
        assert (await refusal(support.stub.VerifyAttempts(request)))[0] is Code.NOT_FOUND


# Samples


async def test_every_prompt_gets_its_sample(support) -> None:
    found = await support.sample(stop_token_ids=[22])
    by_index = {attempt.index: attempt for attempt in found}
    assert {i: list(a.token_ids) for i, a in by_index.items()} == {
        0: [11, 12, 13, 14, 15],
        1: [21, 22],
        2: [31, 32, 33, 34, 35],
        3: [41, 42, 43, 44, 45],
    }
    assert list(by_index[1].logprobs) == [-21.0, -22.0]
    assert [by_index[i].truncated for i in range(4)] == [True, False, True, True]
    assert {attempt.adapter for attempt in found} == {"base"}


async def test_the_engine_is_asked_below_everybody_elses_priority(support) -> None:
    name = await support.load(1)
    await support.sample(name, temperature=0.5, top_p=0.9, top_k=7, stop_token_ids=[299])
    for request in support.engine.requests:
        assert request.priority == PRIORITY > 10
        assert request.adapter == support.slots.held[0]
        assert request.sampling.logprobs
        assert request.sampling.ignore_eos
        assert request.sampling.stop_token_ids == (299,)
        assert (request.sampling.temperature, request.sampling.top_p) == (0.5, 0.9)
        assert request.sampling.top_k == 7
    assert sorted(request.sampling.seed for request in support.engine.requests) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "prompts: 0 in one call"),
        ({"prompts": [pb.AttemptPrompt()]}, r"prompts\[0\]: 0 tokens"),
        ({"prompts": [pb.AttemptPrompt(token_ids=[1] * 128)]}, r"prompts\[0\]: 128 tokens.* 127"),
        ({"prompts": [pb.AttemptPrompt(token_ids=[1, 300])]}, r"prompts\[0\]: token 300"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"temperature": 0.0}, "temperature: 0"),
        ({"temperature": 2.5}, "rollout.sampler to local"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0.0}, "top_p: 0"),
        ({"stop_token_ids": [300]}, "stop_token_ids: 300"),
    ],
)
async def test_what_cannot_be_sampled_is_refused(support, changes, message) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=message) as caught:
        await support.sample(**changes)
    assert caught.value.code() is Code.INVALID_ARGUMENT
    assert not support.engine.requests


async def test_no_more_samples_run_than_users_leave_room_for(support) -> None:
    support.limit.limit = 2
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample())
    await until(lambda: support.engine.running == 2)
    await asyncio.sleep(0.1)
    assert support.engine.running == 2
    support.engine.gate.set()
    assert len(await sampling) == 4


async def test_a_sample_that_users_interrupt_goes_on_where_it_was(support) -> None:
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample())
    await until(lambda: support.engine.running == 4)
    support.limit.limit = 1
    await until(lambda: support.engine.running == 1)
    support.limit.limit = 0
    await until(lambda: support.engine.running == 0)
    assert not sampling.done()
    support.limit.limit = 4
    support.engine.gate.set()
    found = await sampling
    assert {a.index: list(a.token_ids) for a in found} == {
        i: [10 * (i + 1) + n for n in range(1, 6)] for i in range(4)
    }
    assert all(list(a.logprobs) == [-float(t) for t in a.token_ids] for a in found)
    again = [r for r in support.engine.requests if len(r.prompt_ids) == 2]
    assert len(again) == 4
    assert {r.sampling.max_tokens for r in again} == {4}
    assert sorted(r.sampling.seed for r in again) == sorted(seed_at(i, 1) for i in range(1, 5))


async def test_the_one_that_came_last_leaves_first(support) -> None:
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample())
    await until(lambda: support.engine.running == 4)
    support.limit.limit = 2
    await until(lambda: support.engine.running == 2)
    await until(lambda: sorted(support.admission._inside) == [0, 1])
    support.limit.limit = 0
    await until(lambda: len(support.admission._waiting) == 4)
    support.limit.limit = 2
    await until(lambda: support.engine.running == 2)
    # Those that came first are the first to come back.
    assert {r.prompt_ids[0] for r in support.engine.requests[-2:]} == {10, 20}
    support.engine.gate.set()
    await sampling


async def test_an_engine_that_dies_costs_time_only(support) -> None:
    support.engine.failures = 2
    found = await support.sample()
    assert {a.index: len(a.token_ids) for a in found} == {0: 5, 1: 5, 2: 5, 3: 5}


async def test_a_client_that_goes_away_ends_the_work(support) -> None:
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample())
    await until(lambda: support.engine.running == 4)
    sampling.cancel()
    await until(lambda: support.engine.running == 0)
    await until(lambda: not support.admission._inside)


# Students


async def test_a_student_is_named_after_run_and_content(support) -> None:
    request = support.write(1)
    answer = await support.stub.LoadStudent(request)
    assert answer.adapter == f"opsd-run-{RUN_ID[:8]}-{request.sha256[:16]}"
    assert [handle.name for handle in support.slots.held] == [answer.adapter]
    assert support.slots.held[0].lora_id >= 1 << 30
    # The run may delete what it has written: the engine has its own copy.
    assert not Path(support.slots.held[0].path).is_relative_to(support.run_dir)


async def test_loading_the_same_bytes_again_changes_nothing(support) -> None:
    assert await support.load(1) == await support.load(1)
    assert len(support.slots.held) == 1


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"sha256": "0" * 64}, Code.FAILED_PRECONDITION, "its content digest is"),
        ({"sha256": "../x"}, Code.FAILED_PRECONDITION, "expected SHA-256"),
        ({"path": "/etc"}, Code.INVALID_ARGUMENT, "not inside the run's directory"),
        ({"path": "/nowhere"}, Code.INVALID_ARGUMENT, "cannot be read"),
        ({"path": ""}, Code.INVALID_ARGUMENT, "not inside"),
    ],
)
async def test_files_that_are_not_what_they_should_be(support, change, code, message) -> None:
    found, details = await refusal(support.stub.LoadStudent(support.write(1, **change)))
    assert found is code
    assert message in details
    assert not support.slots.held


async def test_a_link_out_of_the_runs_directory_is_refused(support, tmp_path) -> None:
    request = support.write(1)
    shutil.move(request.path, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", request.path)
    code, details = await refusal(support.stub.LoadStudent(request))
    assert code is Code.INVALID_ARGUMENT
    assert "not inside" in details


async def test_an_older_version_goes_when_nothing_uses_it(support) -> None:
    support.slots.slots = 3
    one = await support.load(1)
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample(one))
    await until(lambda: support.engine.running == 4)
    two = await support.load(2)
    await asyncio.sleep(0.05)
    assert [handle.name for handle in support.slots.held] == [one, two]
    # A third has to wait for the first.
    loading = asyncio.create_task(support.load(3))
    await asyncio.sleep(0.05)
    assert not loading.done()
    support.engine.gate.set()
    assert {a.adapter for a in await sampling} == {one}
    three = await loading
    await until(lambda: [handle.name for handle in support.slots.held] == [three])
    assert support.slots.most_held == 2
    code, details = await refusal(support.sample(one))
    assert code is Code.NOT_FOUND
    assert three in details


async def test_an_interrupted_sampling_keeps_its_student(support) -> None:
    """Nothing of it is in the engine for the moment, but it is not over."""
    one = await support.load(1)
    support.limit.limit = 0
    sampling = asyncio.create_task(support.sample(one))
    await asyncio.sleep(0.05)
    await support.load(2)
    await asyncio.sleep(0.05)
    assert one in [handle.name for handle in support.slots.held]
    support.limit.limit = 4
    assert len(await sampling) == 4


async def test_with_one_slot_the_older_version_goes_first(support) -> None:
    support.slots.slots = 1
    await support.load(1)
    two = await support.load(2)
    assert [handle.name for handle in support.slots.held] == [two]


async def test_no_slot_at_all_is_said_and_may_pass(support) -> None:
    support.slots.slots = 0
    code, details = await refusal(support.stub.LoadStudent(support.write(1)))
    assert (code, details) == (Code.RESOURCE_EXHAUSTED, "no slot")
    support.slots.slots = 1
    assert await support.load(1)


async def test_serving_takes_a_students_place_at_once(support) -> None:
    one = await support.load(1)
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample(one))
    await until(lambda: support.engine.running == 4)
    await support.service.interrupt(one)
    assert support.engine.running == 0
    code, details = await refusal(sampling)
    assert code is Code.ABORTED
    assert "call LoadStudent again" in details
    assert (await refusal(support.sample(one)))[0] is Code.NOT_FOUND
    assert await support.load(1) == one


async def test_release_unloads_and_deletes(support) -> None:
    await support.load(1)
    assert len(await asyncio.to_thread(os.listdir, support.students._directory)) == 1
    await support.stub.ReleaseStudent(pb.ReleaseStudentRequest(run_id=RUN_ID))
    assert not support.slots.held
    assert not await asyncio.to_thread(os.listdir, support.students._directory)


@pytest.mark.parametrize("state", [RunState.FAILED, RunState.CANCELLED, RunState.EVALUATING])
async def test_the_end_of_a_run_releases_everything(support, state) -> None:
    one = await support.load(1)
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample(one))
    await until(lambda: support.engine.running == 4)
    support.rows.move(state)
    code, details = await refusal(sampling)
    assert code is Code.FAILED_PRECONDITION
    assert f"the run is {state}" in details
    await until(lambda: not support.slots.held)


async def test_the_daemons_end_is_told(support) -> None:
    support.engine.gate.clear()
    sampling = asyncio.create_task(support.sample())
    await until(lambda: support.engine.running == 4)
    await support.server.stop()
    code, _ = await refusal(sampling)
    assert code is Code.UNAVAILABLE


async def test_what_users_see_reaches_the_controller(support) -> None:
    tag = support.admission.arrived(1)
    support.admission.first_token(tag, 0.1)
    support.admission.tokens(3, 0.2)
    support.admission.left(0)
    assert support.limit.seen == [("arrived", 1), ("first", "tag"), ("tokens", 3), ("left", 0)]
