"""Answers, outcomes, problems and exports over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import pytest
from source_world import HELD_OUT_PROMPT, World, make_world

from opsd.daemon.app.interceptors import ErrorInterceptor
from opsd.daemon.collect.source_service import EXPORT_PAGE, SourceService
from opsd.daemon.collect.sources.answers import AnswerIntake
from opsd.daemon.collect.sources.driver import SourceDriver
from opsd.daemon.collect.sources.problems import ProblemIntake
from opsd.daemon.types.pairs import Attempt, Origin, PairInput, Verdict, VerdictKind
from opsd.daemon.types.problems import Provenance
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

ACCEPTED, REJECTED = pb.ATTEMPT_OUTCOME_KIND_ACCEPTED, pb.ATTEMPT_OUTCOME_KIND_REJECTED


class Unsure:
    """A verifier that cannot tell."""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict:
        return Verdict(VerdictKind.ERROR, verifier, "took too long")


@dataclass
class Ready:
    is_ready: bool = True


@dataclass
class Running:
    stub: Any
    world: World
    answers: AnswerIntake

    def attempt(self, completion: str, prompt: str = "") -> str:
        """Served, and kept."""
        attempt = Attempt(
            id=str(uuid4()),
            request_id="r",
            adapter="opsd-canary",
            prompt=prompt or f"What is 1 + 1? ({uuid4()})",
            completion=completion,
            completion_tokens=3,
            created_unix_s=1.0,
        )
        self.world.store.add_attempts([attempt])
        return attempt.id


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    with make_world(tmp_path) as world:
        problems = ProblemIntake(world.store, world.held_out, world.intake, world.clock)
        answers = AnswerIntake(
            world.store,
            world.intake.inner.attempt,
            world.verifier,
            world.intake,
            problems,
            world.intake,
        )
        driver = SourceDriver([], world.store, Ready())
        service = SourceService(world.store, answers, problems, driver)
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        pb_grpc.add_SourceServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Running(pb_grpc.SourceServiceStub(channel), world, answers)
        await server.stop(0)


def answer(attempt_id: str, reference: str = "2", **fields: str) -> pb.SubmitAnswerRequest:
    return pb.SubmitAnswerRequest(
        attempt_id=attempt_id, verifier="numeric", reference=reference, **fields
    )


async def stream(requests: Iterable[Any]) -> AsyncIterator[Any]:
    for request in requests:
        yield request


async def code_of(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_an_attempt_that_passes_becomes_a_pair_of_its_own_trace(running: Running) -> None:
    attempt_id = running.attempt("one and one. Answer: 2", "What is 1 + 1?")
    metadata = [("x-opsd-actor", "ana")]
    result = await running.stub.SubmitAnswer(answer(attempt_id), metadata=metadata)
    assert result.verdict.kind == pb.VERDICT_KIND_PASS
    assert (result.own_pair.status, result.problem_id) == (pb.PAIR_STATUS_VERIFIED, "")
    ((given, submitter, origin),) = running.world.intake.seen
    assert (given.prompt, given.solution, given.reference) == (
        "What is 1 + 1?",
        "one and one. Answer: 2",
        "2",
    )
    assert (submitter, origin) == ("ana", Origin.FEEDBACK)
    (outcome,) = running.world.store.attempt_outcomes_since(0)
    assert (outcome.adapter, outcome.outcome, outcome.verified, outcome.reporter) == (
        "opsd-canary",
        "accepted",
        True,
        "ana",
    )


async def test_an_attempt_that_fails_becomes_a_problem(running: Running) -> None:
    attempt_id = running.attempt("Answer: 3", "What is 1 + 1?")
    result = await running.stub.SubmitAnswer(answer(attempt_id, source="users"))
    assert result.verdict.kind == pb.VERDICT_KIND_FAIL
    assert not result.HasField("own_pair")
    assert running.world.intake.seen == []
    problem = running.world.store.get_problem(result.problem_id)
    assert (problem.input.prompt, problem.input.reference, problem.input.source) == (
        "What is 1 + 1?",
        "2",
        "users",
    )
    assert problem.origin is Origin.FEEDBACK
    (outcome,) = running.world.store.attempt_outcomes_since(0)
    assert (outcome.outcome, outcome.verified) == ("rejected", True)


async def test_a_solution_that_comes_along_is_verified_like_any_other(running: Running) -> None:
    attempt_id = running.attempt("Answer: 3")
    good = await running.stub.SubmitAnswer(answer(attempt_id, solution="1 + 1 = 2"))
    assert good.solution_pair.status == pb.PAIR_STATUS_VERIFIED
    bad = await running.stub.SubmitAnswer(answer(attempt_id, solution="1 + 1 = 7"))
    assert bad.solution_pair.status == pb.PAIR_STATUS_UNVERIFIED


async def test_sent_again_it_stores_nothing_twice(running: Running) -> None:
    passed, failed = running.attempt("Answer: 2"), running.attempt("Answer: 3")
    for _ in range(2):
        results = [
            await running.stub.SubmitAnswer(answer(attempt_id)) for attempt_id in (passed, failed)
        ]
    assert results[0].own_pair.already_stored
    store = running.world.store
    assert len(store.pairs_after(0, limit=9)) == 1
    assert store.list_problems(limit=9).total == 1
    assert len(store.attempt_outcomes_since(0)) == 2


async def test_another_answer_with_another_verdict_is_refused(running: Running) -> None:
    attempt_id = running.attempt("Answer: 3")
    await running.stub.SubmitAnswer(answer(attempt_id, "2"))
    code = await code_of(running.stub.SubmitAnswer(answer(attempt_id, "3")))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    assert running.world.intake.seen == []


async def test_nothing_is_stored_when_the_verifier_cannot_tell(running: Running) -> None:
    attempt_id = running.attempt("Answer: 2")
    running.answers._verifier = Unsure()
    code = await code_of(running.stub.SubmitAnswer(answer(attempt_id)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert running.world.store.attempt_outcomes_since(0) == []
    assert running.world.store.list_problems(limit=9).total == 0


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"reference": ""}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"verifier": "taste"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"source": "x" * 300}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"attempt_id": "none"}, grpc.StatusCode.NOT_FOUND),
        ({"attempt_id": ""}, grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_a_bad_answer_stores_nothing(
    running: Running, fields: dict[str, str], code: grpc.StatusCode
) -> None:
    good = {"attempt_id": running.attempt("Answer: 2"), "verifier": "numeric", "reference": "2"}
    request = pb.SubmitAnswerRequest(**(good | fields))
    assert await code_of(running.stub.SubmitAnswer(request)) is code
    assert running.world.store.attempt_outcomes_since(0) == []


async def test_a_held_out_attempt_gives_neither_pair_nor_problem(running: Running) -> None:
    for completion in ("Answer: 21", "Answer: 3"):
        attempt_id = running.attempt(completion, HELD_OUT_PROMPT)
        result = await running.stub.SubmitAnswer(answer(attempt_id, "21"))
        assert result.own_pair.status in (
            pb.PAIR_STATUS_HELD_OUT,
            pb.PAIR_STATUS_UNSPECIFIED,
        )
        assert result.problem_id == ""
    assert running.world.store.list_problems(limit=9).total == 0
    assert running.world.store.pairs_after(0, limit=9) == []


async def test_many_answers_are_told_of_in_order_and_one_fault_ends_nothing(
    running: Running,
) -> None:
    ids = [running.attempt(f"Answer: {number % 3}") for number in range(100)]
    ids[50] = "unknown"
    call = running.stub.SubmitAnswers(stream(answer(attempt_id) for attempt_id in ids))
    results = [result async for result in call]
    assert [result.attempt_id for result in results] == ids
    assert [r.error_code for r in results if r.error_code] == ["NOT_FOUND"]
    assert "unknown" in results[50].message
    assert len(running.world.intake.seen) == len([n for n in range(100) if n % 3 == 2 and n != 50])


async def test_an_outcome_is_kept_and_is_no_evidence(running: Running) -> None:
    attempt_id = running.attempt("Answer: 2")
    request = pb.SubmitOutcomeRequest(attempt_id=attempt_id, outcome=ACCEPTED, comment="ran")
    metadata = [("x-opsd-actor", "ci")]
    assert not (await running.stub.SubmitOutcome(request, metadata=metadata)).already_stored
    assert (await running.stub.SubmitOutcome(request)).already_stored
    request.outcome = REJECTED
    assert await code_of(running.stub.SubmitOutcome(request)) is grpc.StatusCode.ALREADY_EXISTS
    (outcome,) = running.world.store.attempt_outcomes_since(0)
    assert (outcome.reporter, outcome.verified, outcome.comment) == ("ci", False, "ran")
    assert running.world.intake.seen == []
    # What the daemon finds out itself stands beside what was reported.
    await running.stub.SubmitAnswer(answer(attempt_id, "3"))
    listed = await running.stub.ListOutcomes(pb.ListOutcomesRequest(attempt_id=attempt_id))
    assert [(o.outcome, o.verified) for o in listed.outcomes] == [
        (ACCEPTED, False),
        (REJECTED, True),
    ]


async def test_outcomes_in_a_stream(running: Running) -> None:
    ids = [running.attempt("x"), "nobody", running.attempt("y")]
    requests = [pb.SubmitOutcomeRequest(attempt_id=each, outcome=REJECTED) for each in ids]
    requests.append(pb.SubmitOutcomeRequest(attempt_id=ids[0]))
    results = [result async for result in running.stub.SubmitOutcomes(stream(requests))]
    assert [result.error_code for result in results] == ["", "NOT_FOUND", "", "INVALID_ARGUMENT"]


async def test_outcomes_are_followed_from_a_seq(running: Running) -> None:
    for _ in range(3):
        await running.stub.SubmitOutcome(
            pb.SubmitOutcomeRequest(attempt_id=running.attempt("x"), outcome=ACCEPTED)
        )
    first = await running.stub.ListOutcomes(pb.ListOutcomesRequest(page_size=2))
    assert len(first.outcomes) == 2
    rest = await running.stub.ListOutcomes(pb.ListOutcomesRequest(after_seq=first.next_after_seq))
    assert (len(rest.outcomes), rest.next_after_seq) == (1, 0)
    none = await running.stub.ListOutcomes(pb.ListOutcomesRequest(adapter="another"))
    assert len(none.outcomes) == 0


def problem(**fields: Any) -> pb.SubmitProblemsRequest:
    given = {"id": str(uuid4()), "prompt": f"2+2? {uuid4()}", "verifier": "numeric"}
    return pb.SubmitProblemsRequest(problem=pb.ProblemInput(**(given | fields)))


async def submit(running: Running, *requests: pb.SubmitProblemsRequest) -> list[pb.ProblemResult]:
    return [result async for result in running.stub.SubmitProblems(stream(requests))]


async def test_problems_are_answered_for_in_order(running: Running) -> None:
    good = problem(reference="4")
    same = pb.SubmitProblemsRequest(problem=good.problem)
    copy = problem(prompt=good.problem.prompt, reference="4")
    results = await submit(
        running,
        good,
        same,
        copy,
        problem(prompt=HELD_OUT_PROMPT),
        problem(id="7"),
        problem(prompt=" "),
        problem(priority=1 << 30),
        problem(id=good.problem.id),
    )
    kinds = [pb.ProblemResultKind.Name(result.kind).rpartition("KIND_")[2] for result in results]
    assert kinds == [
        "STORED",
        "ALREADY_STORED",
        "DUPLICATE",
        "HELD_OUT",
        "INVALID",
        "INVALID",
        "INVALID",
        "INVALID",
    ]
    assert results[2].duplicate_of == good.problem.id
    listed = await running.stub.ListProblems(pb.ListProblemsRequest())
    assert (listed.total, listed.problems[0].input) == (1, good.problem)


async def test_exports_go_on_after_a_seq(running: Running) -> None:
    await submit(running, *(problem() for _ in range(EXPORT_PAGE + 1)))
    everything = [p async for p in running.stub.ExportProblems(pb.ExportProblemsRequest())]
    assert len({p.input.id for p in everything}) == EXPORT_PAGE + 1
    seqs = [p.seq for p in everything]
    assert seqs == sorted(seqs)
    request = pb.ExportProblemsRequest(after_seq=seqs[-3])
    rest = [p async for p in running.stub.ExportProblems(request)]
    assert [p.seq for p in rest] == seqs[-2:]


async def test_pairs_are_exported_with_what_is_known_of_them(running: Running) -> None:
    intake = running.world.intake
    for number in range(EXPORT_PAGE + 5):
        reference = "2" if number % 5 else "3"
        given = PairInput(
            str(uuid4()),
            f"1+1? {number}",
            "Answer: 2",
            "numeric",
            reference,
            source=f"s{number % 2}",
        )
        await intake.submit(given, "ana")
        running.world.clock.now += 1.0
    first = intake.seen[0][0].id
    running.world.store.add_provenance(
        Provenance(first, Origin.OWN_ATTEMPT, "p", "base", '{"passed": 2}', 1.0)
    )
    export = running.stub.ExportPairs
    pairs = [pair async for pair in export(pb.ExportPairsRequest())]
    assert [pair.input.id for pair in pairs] == [given.id for given, _, _ in intake.seen]
    assert (pairs[0].provenance_json, pairs[1].provenance_json) == ('{"passed": 2}', "")
    unverified = pb.ExportPairsRequest(status=pb.PAIR_STATUS_UNVERIFIED, source="s0")
    assert {p.status async for p in export(unverified)} == {"unverified"}
    late = pb.ExportPairsRequest(since_unix_s=pairs[-1].created_unix_s)
    assert [p.input.id async for p in export(late)] == [pairs[-1].input.id]
    with pytest.raises(grpc.aio.AioRpcError, match="not known"):
        _ = [p async for p in export(pb.ExportPairsRequest(origin="stolen"))]


async def test_a_reader_that_goes_away_ends_the_export(running: Running) -> None:
    await submit(running, *(problem() for _ in range(300)))
    call = running.stub.ExportProblems(pb.ExportProblemsRequest())
    async for _ in call:
        break
    call.cancel()
    await asyncio.sleep(0)
    assert len((await running.stub.GetSources(pb.GetSourcesRequest())).sources) == 0
