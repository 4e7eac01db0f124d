"""Between the messages of SourceService and plain data."""

from __future__ import annotations

from opsd.daemon.collect.convert import pair_input_message, result_message, verdict_message
from opsd.daemon.collect.sources.answers import Answer, AnswerOutcome
from opsd.daemon.collect.sources.driver import SourceState
from opsd.daemon.collect.sources.problems import ProblemOutcome
from opsd.daemon.types.problems import (
    AttemptOutcome,
    AttemptOutcomeKind,
    Problem,
    ProblemInput,
    ProblemState,
    StoredPair,
)
from opsd.v1 import collection_pb2 as pb

OUTCOMES = {
    pb.ATTEMPT_OUTCOME_KIND_ACCEPTED: AttemptOutcomeKind.ACCEPTED,
    pb.ATTEMPT_OUTCOME_KIND_REJECTED: AttemptOutcomeKind.REJECTED,
}
_OUTCOMES_OUT = {kind: number for number, kind in OUTCOMES.items()}
STATES = {
    pb.PROBLEM_STATE_OPEN: ProblemState.OPEN,
    pb.PROBLEM_STATE_SOLVED: ProblemState.SOLVED,
    pb.PROBLEM_STATE_GIVEN_UP: ProblemState.GIVEN_UP,
    pb.PROBLEM_STATE_HELD_OUT: ProblemState.HELD_OUT,
    pb.PROBLEM_STATE_REFUSED: ProblemState.REFUSED,
}
_STATES_OUT = {state: number for number, state in STATES.items()}
_KINDS = {
    "stored": pb.PROBLEM_RESULT_KIND_STORED,
    "already_stored": pb.PROBLEM_RESULT_KIND_ALREADY_STORED,
    "duplicate": pb.PROBLEM_RESULT_KIND_DUPLICATE,
    "held_out": pb.PROBLEM_RESULT_KIND_HELD_OUT,
    "invalid": pb.PROBLEM_RESULT_KIND_INVALID,
}


def answer_of(message: pb.SubmitAnswerRequest) -> Answer:
    return Answer(
        attempt_id=message.attempt_id,
        verifier=message.verifier,
        reference=message.reference,
        solution=message.solution,
        source=message.source,
        stratum=message.stratum,
    )


def answer_message(attempt_id: str, outcome: AnswerOutcome) -> pb.AnswerResult:
    own, solution = outcome.own_pair, outcome.solution_pair
    return pb.AnswerResult(
        attempt_id=attempt_id,
        verdict=verdict_message(outcome.verdict),
        own_pair=None if own is None else result_message(own),
        solution_pair=None if solution is None else result_message(solution),
        problem_id=outcome.problem_id,
    )


def outcome_message(outcome: AttemptOutcome) -> pb.AttemptOutcome:
    return pb.AttemptOutcome(
        seq=outcome.seq,
        attempt_id=outcome.attempt_id,
        adapter=outcome.adapter,
        outcome=_OUTCOMES_OUT[outcome.outcome],
        reporter=outcome.reporter,
        verified=outcome.verified,
        comment=outcome.comment,
        created_unix_s=outcome.created_unix_s,
    )


def problem_input(message: pb.ProblemInput) -> ProblemInput:
    return ProblemInput(
        id=message.id,
        prompt=message.prompt,
        verifier=message.verifier,
        reference=message.reference,
        source=message.source,
        stratum=message.stratum,
        priority=message.priority,
    )


def problem_result(outcome: ProblemOutcome) -> pb.ProblemResult:
    return pb.ProblemResult(
        id=outcome.id,
        kind=_KINDS[outcome.label],
        message=outcome.message,
        duplicate_of=outcome.duplicate_of,
    )


def problem_message(problem: Problem) -> pb.Problem:
    given = problem.input
    return pb.Problem(
        input=pb.ProblemInput(
            id=given.id,
            prompt=given.prompt,
            verifier=given.verifier,
            reference=given.reference,
            source=given.source,
            stratum=given.stratum,
            priority=given.priority,
        ),
        state=_STATES_OUT[problem.state],
        submitter=problem.submitter,
        origin=problem.origin.value,
        parent_id=problem.parent_id,
        attempts=problem.attempts,
        solves=problem.solves,
        tries=problem.tries,
        pair_id=problem.pair_id,
        note=problem.note,
        created_unix_s=problem.created_unix_s,
        updated_unix_s=problem.updated_unix_s,
        seq=problem.seq,
    )


def exported_message(stored: StoredPair) -> pb.ExportedPair:
    pair = stored.pair
    return pb.ExportedPair(
        seq=stored.seq,
        input=pair_input_message(pair.input),
        status=pair.status.value,
        origin=pair.origin.value,
        verdict=verdict_message(pair.verdict),
        submitter=pair.submitter,
        created_unix_s=pair.created_unix_s,
        provenance_json=stored.provenance_json,
    )


def state_message(state: SourceState) -> pb.SourceStatus:
    return pb.SourceStatus(
        name=state.name,
        enabled=state.enabled,
        doing=state.doing,
        pairs_today=state.pairs_today,
        daily_quota=state.daily_quota,
        problems_open=state.problems_open,
        last_error=state.last_error,
    )
