"""SourceService of collection.proto."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from opsd.daemon.collect.convert import STORED_STATUSES, origin_of
from opsd.daemon.collect.service import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, submitter
from opsd.daemon.collect.source_convert import (
    OUTCOMES,
    STATES,
    answer_message,
    answer_of,
    exported_message,
    outcome_message,
    problem_input,
    problem_message,
    problem_result,
    state_message,
)
from opsd.daemon.collect.sources.answers import AnswerIntake
from opsd.daemon.collect.sources.driver import SourceState
from opsd.daemon.collect.sources.problems import ProblemIntake
from opsd.daemon.collect.streams import in_order
from opsd.daemon.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    StateError,
)
from opsd.daemon.store.sources_api import SourceStore
from opsd.daemon.types.problems import ProblemState
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

EXPORT_PAGE = 200
"""Rows that an export holds at a time."""
MAX_ATTEMPT_ID_CHARS = 128

Context = grpc.aio.ServicerContext[Any, Any]

_OWN_FAULTS = (NotFoundError, InvalidInputError, StateError, ConflictError)
"""What is wrong with one request of a stream, and says nothing about the next one."""


class SourceStates(Protocol):
    """The driver of the sources."""

    async def states(self) -> list[SourceState]: ...


class SourceService(pb_grpc.SourceServiceServicer):
    """Raises the errors of ``opsd.daemon.errors``; an interceptor makes statuses of them."""

    def __init__(
        self,
        store: SourceStore,
        answers: AnswerIntake,
        problems: ProblemIntake,
        states: SourceStates,
    ) -> None:
        self._store = store
        self._answers = answers
        self._problems = problems
        self._states = states

    async def SubmitAnswer(
        self, request: pb.SubmitAnswerRequest, context: Context
    ) -> pb.AnswerResult:
        return await self._answer(request, submitter(context))

    async def SubmitAnswers(
        self, request_iterator: AsyncIterator[pb.SubmitAnswerRequest], context: Context
    ) -> AsyncIterator[pb.AnswerResult]:
        actor = submitter(context)

        async def work(request: pb.SubmitAnswerRequest) -> pb.AnswerResult:
            try:
                return await self._answer(request, actor)
            except _OWN_FAULTS as error:
                return pb.AnswerResult(
                    attempt_id=request.attempt_id, error_code=error.code, message=str(error)
                )

        async for result in in_order(request_iterator, work, "SubmitAnswerRequest"):
            yield result

    async def SubmitOutcome(
        self, request: pb.SubmitOutcomeRequest, context: Context
    ) -> pb.OutcomeResult:
        return await self._outcome(request, submitter(context))

    async def SubmitOutcomes(
        self, request_iterator: AsyncIterator[pb.SubmitOutcomeRequest], context: Context
    ) -> AsyncIterator[pb.OutcomeResult]:
        actor = submitter(context)

        async def work(request: pb.SubmitOutcomeRequest) -> pb.OutcomeResult:
            try:
                return await self._outcome(request, actor)
            except _OWN_FAULTS as error:
                return pb.OutcomeResult(
                    attempt_id=request.attempt_id, error_code=error.code, message=str(error)
                )

        async for result in in_order(request_iterator, work, "SubmitOutcomeRequest"):
            yield result

    async def ListOutcomes(
        self, request: pb.ListOutcomesRequest, context: Context
    ) -> pb.ListOutcomesResponse:
        limit = _page_size(request.page_size)
        found = await asyncio.to_thread(
            self._store.attempt_outcomes_since,
            request.after_seq,
            limit=limit,
            adapter=request.adapter,
            attempt_id=request.attempt_id,
        )
        return pb.ListOutcomesResponse(
            outcomes=[outcome_message(outcome) for outcome in found],
            next_after_seq=found[-1].seq if len(found) == limit else 0,
        )

    async def SubmitProblems(
        self, request_iterator: AsyncIterator[pb.SubmitProblemsRequest], context: Context
    ) -> AsyncIterator[pb.ProblemResult]:
        actor = submitter(context)

        async def work(request: pb.SubmitProblemsRequest) -> pb.ProblemResult:
            return problem_result(
                await self._problems.submit(problem_input(request.problem), actor)
            )

        async for result in in_order(request_iterator, work, "SubmitProblemsRequest"):
            yield result

    async def ListProblems(
        self, request: pb.ListProblemsRequest, context: Context
    ) -> pb.ListProblemsResponse:
        page = await asyncio.to_thread(
            self._store.list_problems,
            limit=_page_size(request.page_size),
            token=request.page_token,
            state=_state(request.state),
            source=request.source,
        )
        return pb.ListProblemsResponse(
            problems=[problem_message(problem) for problem in page.items],
            next_page_token=page.next_token,
            total=page.total,
        )

    async def ExportPairs(
        self, request: pb.ExportPairsRequest, context: Context
    ) -> AsyncIterator[pb.ExportedPair]:
        if request.status and request.status not in STORED_STATUSES:
            raise InvalidInputError("status: only stored pairs can be exported: verified or not")
        origin = origin_of(request.origin)
        seq = request.after_seq
        while True:
            found = await asyncio.to_thread(
                self._store.pairs_after,
                seq,
                limit=EXPORT_PAGE,
                status=STORED_STATUSES.get(request.status),
                source=request.source,
                since_unix_s=request.since_unix_s,
            )
            for stored in found:
                if origin in (None, stored.pair.origin):
                    yield exported_message(stored)
            if len(found) < EXPORT_PAGE:
                return
            seq = found[-1].seq

    async def ExportProblems(
        self, request: pb.ExportProblemsRequest, context: Context
    ) -> AsyncIterator[pb.Problem]:
        seq = request.after_seq
        while True:
            found = await asyncio.to_thread(
                self._store.problems_after,
                seq,
                limit=EXPORT_PAGE,
                state=_state(request.state),
                source=request.source,
            )
            for problem in found:
                yield problem_message(problem)
            if len(found) < EXPORT_PAGE:
                return
            seq = found[-1].seq

    async def GetSources(
        self, request: pb.GetSourcesRequest, context: Context
    ) -> pb.GetSourcesResponse:
        states = await self._states.states()
        return pb.GetSourcesResponse(sources=[state_message(state) for state in states])

    async def _answer(self, request: pb.SubmitAnswerRequest, actor: str) -> pb.AnswerResult:
        _check_attempt_id(request.attempt_id)
        outcome = await self._answers.answer(answer_of(request), actor)
        return answer_message(request.attempt_id, outcome)

    async def _outcome(self, request: pb.SubmitOutcomeRequest, actor: str) -> pb.OutcomeResult:
        _check_attempt_id(request.attempt_id)
        if request.outcome not in OUTCOMES:
            raise InvalidInputError(
                f"outcome: {request.outcome} is neither ACCEPTED (1) nor REJECTED (2)"
            )
        _, is_new = await self._answers.outcome(
            request.attempt_id, OUTCOMES[request.outcome], actor, request.comment
        )
        return pb.OutcomeResult(attempt_id=request.attempt_id, already_stored=not is_new)


def _check_attempt_id(given: str) -> None:
    if not 0 < len(given) <= MAX_ATTEMPT_ID_CHARS:
        raise InvalidInputError(
            f"attempt_id: {given[:64]!r} is none: send the attempt_id of a response"
        )


def _page_size(given: int) -> int:
    limit = given or DEFAULT_PAGE_SIZE
    if limit > MAX_PAGE_SIZE:
        raise InvalidInputError(f"page_size: {limit} is more than {MAX_PAGE_SIZE}")
    return limit


def _state(given: pb.ProblemState.ValueType) -> ProblemState | None:
    if given and given not in STATES:
        raise InvalidInputError(f"state: {given} is no ProblemState")
    return STATES.get(given)
