"""The audit over gRPC: prefixes, steps, runs that still train, and every refusal."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import grpc
import pytest

from opsd.daemon.admin.service import AdminService
from opsd.daemon.admin.token_audit import FILE_NAME
from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.store.connect import sqlite_url
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.v1 import admin_pb2_grpc
from opsd.v1.admin_pb2 import ReadTokenAuditRequest
from opsd.v1.token_audit_pb2 import AuditedAttempt

Read = Callable[..., Awaitable[list[AuditedAttempt]]]
MakeRun = Callable[..., Run]
SPEC = json.dumps({"token_audit": {"attempts_per_step": 1}, "of_a_newer_version": 1})


def line(step: int, **fields: Any) -> str:
    return json.dumps({"step": step, "tokens": [{"id": 3, "text": "ü"}], **fields}) + "\n"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = open_store(sqlite_url(tmp_path))
    yield opened
    opened.close()


@pytest.fixture
def make_run(store: SqlStore, tmp_path: Path) -> MakeRun:
    """A run with its directory and, with lines, its audit."""

    def make(
        lines: str | None = None, state: RunState = RunState.PROMOTED, spec: str = SPEC
    ) -> Run:
        run = store.create_run(
            Run(str(uuid4()), RunState.QUEUED, TriggerKind.OPERATOR, "ana", "because", 1.0, 1.0)
        )
        if state is RunState.QUEUED:
            return run
        directory = tmp_path / run.id
        directory.mkdir()
        if lines is not None:
            (directory / FILE_NAME).write_text(lines)
        return store.transition_run(
            run.id,
            expected=RunState.QUEUED,
            to=state,
            reason="",
            run_dir=str(directory),
            spec_json=spec,
        )

    return make


@pytest.fixture
async def read(store: SqlStore) -> AsyncIterator[Read]:
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    nobody = cast(Any, None)  # reading an audit needs the store only
    service = AdminService(store, nobody, nobody, nobody, nobody)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = admin_pb2_grpc.AdminServiceStub(channel)

        async def attempts(id: str, step: int = 0) -> list[AuditedAttempt]:
            return [a async for a in stub.ReadTokenAudit(ReadTokenAuditRequest(id=id, step=step))]

        yield attempts
    await server.stop(None)


async def refusal(read: Read, id: str, step: int = 0) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(id, step)
    return caught.value.code(), caught.value.details() or ""


async def test_attempts_come_in_the_files_order(read: Read, make_run: MakeRun) -> None:
    run = make_run(line(1, pair_id="a", passed=False) + line(6, pair_id="b") + line(6))
    found = await read(run.id)
    assert [(a.step, a.pair_id) for a in found] == [(1, "a"), (6, "b"), (6, "")]
    assert found[0].HasField("passed")
    assert not found[1].HasField("passed")
    assert found[0].tokens[0].text == "ü"
    assert [a.pair_id for a in await read(run.id[:8])] == ["a", "b", ""]
    assert [a.pair_id for a in await read(run.id, 6)] == ["b", ""]


async def test_a_line_that_is_being_written_is_left_out(read: Read, make_run: MakeRun) -> None:
    run = make_run(line(1) + line(2) + line(3)[:-4], RunState.TRAINING)
    assert [a.step for a in await read(run.id)] == [1, 2]
    run = make_run(line(1) + line(2)[:-1], RunState.TRAINING)
    assert [a.step for a in await read(run.id)] == [1]


async def test_what_is_no_number_and_what_is_unknown(read: Read, make_run: MakeRun) -> None:
    tokens = [{"divergence": "Infinity", "loss": "NaN", "of_a_newer_version": 1}]
    run = make_run(line(1, tokens=tokens))
    token = (await read(run.id))[0].tokens[0]
    assert token.divergence == math.inf
    assert math.isnan(token.loss)


async def test_an_unknown_or_ambiguous_run(read: Read) -> None:
    code, said = await refusal(read, "0000abcd")
    assert code is grpc.StatusCode.NOT_FOUND
    assert "0000abcd" in said
    assert (await refusal(read, " "))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.PREPARING])
async def test_a_run_that_has_not_begun(read: Read, make_run: MakeRun, state: RunState) -> None:
    code, said = await refusal(read, make_run(None, state).id)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert f"is {state} and has not been trained" in said


async def test_a_run_that_was_told_to_write_none(read: Read, make_run: MakeRun) -> None:
    run = make_run(None, spec='{"token_audit": {"every_steps": 5}}')
    code, said = await refusal(read, run.id)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "attempts_per_step is 0" in said
    assert "--set token_audit.attempts_per_step=1" in said


@pytest.mark.parametrize("lines", [None, "", line(1)[:-2]])
async def test_a_run_in_its_first_step(read: Read, make_run: MakeRun, lines: str | None) -> None:
    code, said = await refusal(read, make_run(lines, RunState.TRAINING).id)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "has not finished an audited step" in said


async def test_a_file_that_is_gone_or_empty(read: Read, make_run: MakeRun) -> None:
    run = make_run(None)
    code, said = await refusal(read, run.id)
    assert code is grpc.StatusCode.NOT_FOUND
    assert f"no file {run.run_dir}/{FILE_NAME}" in said
    code, said = await refusal(read, make_run("", RunState.FAILED).id)
    assert code is grpc.StatusCode.NOT_FOUND
    assert "ended before its first step was over" in said


async def test_a_step_that_was_not_audited(read: Read, make_run: MakeRun) -> None:
    run = make_run(line(1) + line(6) + line(6) + line(11), RunState.TRAINING)
    code, said = await refusal(read, run.id, 2)
    assert code is grpc.StatusCode.NOT_FOUND
    assert said.endswith("no attempt of step 2; it has those of step 1, 6, 11")


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("{nope\n", "Expecting property name"),
        ("[1]\n", "no step"),
        ('{"step": true}\n', "no step"),
        ('{"pair_id": "x"}\n', "no step"),
        ('{"step": 6, "tokens": 3}\n', "tokens"),
        ('{"step": 6, "pair_id": 3}\n', "pair_id"),
        ('{"step": 6, "tokens": [{"id": -1}]}\n', "-1"),
        ("[" * 100_000 + "\n", "recursion"),
        ("\n", "Expecting value"),
    ],
)
async def test_a_malformed_line_is_named(read: Read, make_run: MakeRun, bad: str, why: str) -> None:
    run = make_run(line(1) + bad + line(11))
    code, said = await refusal(read, run.id)
    assert code is grpc.StatusCode.INTERNAL
    assert f"{run.run_dir}/{FILE_NAME}, line 2: not an audited attempt" in said
    assert why in said
