"""Between the messages of collection.proto and plain data."""

from __future__ import annotations

from opsd.daemon.collect.intake import Outcome
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.types.pairs import (
    Attempt,
    Origin,
    Pair,
    PairInput,
    PairStatus,
    Rating,
    Verdict,
    VerdictKind,
)
from opsd.v1 import collection_pb2 as pb

STATUSES = {
    "verified": pb.PAIR_STATUS_VERIFIED,
    "unverified": pb.PAIR_STATUS_UNVERIFIED,
    "duplicate": pb.PAIR_STATUS_DUPLICATE,
    "held_out": pb.PAIR_STATUS_HELD_OUT,
    "invalid": pb.PAIR_STATUS_INVALID,
    "quarantined": pb.PAIR_STATUS_QUARANTINED,
    "refused_quota": pb.PAIR_STATUS_REFUSED_QUOTA,
    "purged": pb.PAIR_STATUS_PURGED,
}
STORED_STATUSES = {
    pb.PAIR_STATUS_VERIFIED: PairStatus.VERIFIED,
    pb.PAIR_STATUS_UNVERIFIED: PairStatus.UNVERIFIED,
    pb.PAIR_STATUS_QUARANTINED: PairStatus.QUARANTINED,
    pb.PAIR_STATUS_PURGED: PairStatus.PURGED,
}
RATINGS = {
    pb.FEEDBACK_RATING_GOOD: Rating.GOOD,
    pb.FEEDBACK_RATING_BAD: Rating.BAD,
}
_RATINGS_OUT = {rating: number for number, rating in RATINGS.items()}
_VERDICTS = {
    VerdictKind.PASS: pb.VERDICT_KIND_PASS,
    VerdictKind.FAIL: pb.VERDICT_KIND_FAIL,
    VerdictKind.ERROR: pb.VERDICT_KIND_ERROR,
}


def pair_input(message: pb.PairInput) -> PairInput:
    return PairInput(
        id=message.id,
        prompt=message.prompt,
        solution=message.solution,
        verifier=message.verifier,
        reference=message.reference,
        source=message.source,
        stratum=message.stratum,
    )


def pair_input_message(given: PairInput) -> pb.PairInput:
    return pb.PairInput(
        id=given.id,
        prompt=given.prompt,
        solution=given.solution,
        verifier=given.verifier,
        reference=given.reference,
        source=given.source,
        stratum=given.stratum,
    )


def pair_message(pair: Pair) -> pb.Pair:
    return pb.Pair(
        input=pair_input_message(pair.input),
        status=STATUSES[pair.status.value],
        verdict=verdict_message(pair.verdict),
        submitter=pair.submitter,
        created_unix_s=pair.created_unix_s,
        origin=pair.origin.value,
        quarantine_reason=(pair.quarantine_reason if pair.status is PairStatus.QUARANTINED else ""),
    )


def origin_of(text: str) -> Origin | None:
    """None for "": any. Raises InvalidInputError."""
    if not text:
        return None
    try:
        return Origin(text)
    except ValueError as error:
        known = ", ".join(origin.value for origin in Origin)
        raise InvalidInputError(f"origin: {text[:40]!r} is not known; one of {known}") from error


def verdict_message(verdict: Verdict) -> pb.Verdict:
    return pb.Verdict(
        kind=_VERDICTS[verdict.kind],
        verifier=verdict.verifier,
        evidence=verdict.evidence,
        duration_s=verdict.duration_s,
    )


def result_message(outcome: Outcome) -> pb.PairResult:
    return pb.PairResult(
        id=outcome.id,
        status=STATUSES[outcome.label],
        verdict=None if outcome.verdict is None else verdict_message(outcome.verdict),
        message=outcome.message,
        already_stored=outcome.already_stored,
        duplicate_of=outcome.duplicate_of,
    )


def attempt_message(attempt: Attempt) -> pb.Attempt:
    rating = pb.FEEDBACK_RATING_UNSPECIFIED
    if attempt.rating is not None:
        rating = _RATINGS_OUT[attempt.rating]
    return pb.Attempt(
        id=attempt.id,
        request_id=attempt.request_id,
        adapter=attempt.adapter,
        prompt=attempt.prompt,
        completion=attempt.completion,
        completion_tokens=attempt.completion_tokens,
        rating=rating,
        comment=attempt.comment,
        created_unix_s=attempt.created_unix_s,
    )
