"""CollectionService of collection.proto."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import grpc

from opsd.daemon.collect.convert import (
    RATINGS,
    STORED_STATUSES,
    attempt_message,
    origin_of,
    pair_input,
    pair_message,
    result_message,
)
from opsd.daemon.collect.form import Form
from opsd.daemon.collect.intake import Intake, Outcome, Verifying, intake_rules
from opsd.daemon.collect.ports import Flushable, HeldOut, NearDuplicates, Screen
from opsd.daemon.collect.streams import in_order
from opsd.daemon.config.schema import CollectConfig
from opsd.daemon.errors import InvalidInputError, NotFoundError
from opsd.daemon.store.api import PairStore
from opsd.daemon.types.pairs import Attempt, Origin
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

ACTOR_KEY = "x-opsd-actor"
OWN_PREFIX = "opsd:"
UNKNOWN_ACTOR = "unknown"
MAX_ACTOR_CHARS = 128
MAX_COMMENT_BYTES = 4 << 10
DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 1000
PAGE_BYTES = 3 << 20
"""A page's pairs together, unless one alone is larger: a client accepts 4 MiB by default."""
MAX_UNACKED_PAIRS = 8000
"""Results that fit into one response that a client accepts by default."""

REFUSED = (
    pb.PAIR_STATUS_HELD_OUT,
    pb.PAIR_STATUS_INVALID,
    pb.PAIR_STATUS_REFUSED_QUOTA,
    pb.PAIR_STATUS_PURGED,
)

Context = grpc.aio.ServicerContext[Any, Any]


class CollectionService(pb_grpc.CollectionServiceServicer):
    """Raises the errors of ``opsd.daemon.errors``; an interceptor makes statuses of them.

    ``attempts``, where given, is waited for before an attempt is declared unknown: feedback may
    come in faster than the recorder writes.
    """

    def __init__(
        self,
        store: PairStore,
        verifier: Verifying,
        held_out: HeldOut,
        config: CollectConfig,
        attempts: Flushable | None = None,
        *,
        screen: Screen | None = None,
        near: NearDuplicates | None = None,
    ) -> None:
        self._store = store
        rules = intake_rules(config, screen=screen, near=near)
        form = Form(config, verifier.known_verifiers)
        self._intake = Intake(store, verifier, held_out, form, rules=rules)
        self._attempts = attempts

    @property
    def intake(self) -> Intake:
        """What every pair goes through, wherever it comes from."""
        return self._intake

    def close(self) -> None:
        """Waits for the writes under way."""
        self._intake.close()

    async def SubmitPairs(
        self, request_iterator: AsyncIterator[pb.SubmitPairsRequest], context: Context
    ) -> pb.SubmitPairsResponse:
        results: list[pb.PairResult] = []
        async for result in self._results(request_iterator, submitter(context)):
            results.append(result)
            if len(results) > MAX_UNACKED_PAIRS:
                raise InvalidInputError(
                    f"more than {MAX_UNACKED_PAIRS} pairs in one SubmitPairs stream: the first "
                    f"{len(results)} have been dealt with; use SubmitPairsAcked, or several streams"
                )
        counts = Counter(result.status for result in results)
        return pb.SubmitPairsResponse(
            num_verified=counts[pb.PAIR_STATUS_VERIFIED],
            num_unverified=counts[pb.PAIR_STATUS_UNVERIFIED],
            num_duplicate=counts[pb.PAIR_STATUS_DUPLICATE],
            num_refused=sum(counts[status] for status in REFUSED),
            num_quarantined=counts[pb.PAIR_STATUS_QUARANTINED],
            results=results,
        )

    async def SubmitPairsAcked(
        self, request_iterator: AsyncIterator[pb.SubmitPairsRequest], context: Context
    ) -> AsyncIterator[pb.PairResult]:
        async for result in self._results(request_iterator, submitter(context)):
            yield result

    async def SubmitFeedback(
        self, request: pb.SubmitFeedbackRequest, context: Context
    ) -> pb.SubmitFeedbackResponse:
        comment_bytes = len(request.comment.encode())
        if comment_bytes > MAX_COMMENT_BYTES:
            raise InvalidInputError(
                f"comment: {comment_bytes} bytes, more than the {MAX_COMMENT_BYTES} allowed"
            )
        if request.rating and request.rating not in RATINGS:
            raise InvalidInputError(f"rating: {request.rating} is neither GOOD (1) nor BAD (2)")
        has_feedback = bool(request.rating or request.comment)
        if not has_feedback and not request.HasField("correction"):
            raise InvalidInputError("feedback needs a rating, a comment or a correction")
        attempt = await self.attempt(request.attempt_id)
        correction = pair_input(request.correction)
        if request.HasField("correction"):
            correction = replace(correction, prompt=correction.prompt or attempt.prompt)
            # Before anything is stored: nothing is half-accepted.
            mistakes = await self._intake.mistakes(correction)
            if mistakes:
                raise InvalidInputError("correction." + "; correction.".join(mistakes))
        if has_feedback:
            rating = RATINGS.get(request.rating)
            await self._intake.call(self._store.set_feedback, attempt.id, rating, request.comment)
        if not request.HasField("correction"):
            return pb.SubmitFeedbackResponse()
        outcome = await self._intake.submit(correction, submitter(context), origin=Origin.FEEDBACK)
        return pb.SubmitFeedbackResponse(correction=result_message(outcome))

    async def ListPairs(
        self, request: pb.ListPairsRequest, context: Context
    ) -> pb.ListPairsResponse:
        limit = request.page_size or DEFAULT_PAGE_SIZE
        if limit > MAX_PAGE_SIZE:
            raise InvalidInputError(f"page_size: {limit} is more than {MAX_PAGE_SIZE}")
        if request.status and request.status not in STORED_STATUSES:
            raise InvalidInputError(
                "status: pairs are stored as VERIFIED, UNVERIFIED, QUARANTINED or PURGED"
            )
        origin = origin_of(request.origin)
        while True:
            page = await self._intake.call(
                self._store.list_pairs,
                limit=limit,
                token=request.page_token,
                status=STORED_STATUSES.get(request.status),
                source=request.source,
                submitter=request.submitter,
                origin=origin,
            )
            response = pb.ListPairsResponse(
                pairs=[pair_message(pair) for pair in page.items],
                next_page_token=page.next_token,
                total=page.total,
            )
            if limit == 1 or response.ByteSize() <= PAGE_BYTES:
                return response
            limit = max(1, min(limit, len(page.items)) // 2)

    async def GetPair(self, request: pb.GetPairRequest, context: Context) -> pb.Pair:
        return pair_message(await self._intake.call(self._store.get_pair, request.id))

    async def GetAttempt(self, request: pb.GetAttemptRequest, context: Context) -> pb.Attempt:
        return attempt_message(await self.attempt(request.id))

    async def attempt(self, attempt_id: str) -> Attempt:
        """Raises NotFoundError, but not for one that is still being written."""
        try:
            return await self._intake.call(self._store.get_attempt, attempt_id)
        except NotFoundError:
            if self._attempts is None:
                raise
        await self._attempts.flush()
        return await self._intake.call(self._store.get_attempt, attempt_id)

    def _results(
        self, requests: AsyncIterator[pb.SubmitPairsRequest], actor: str
    ) -> AsyncIterator[pb.PairResult]:
        async def submit(request: pb.SubmitPairsRequest) -> pb.PairResult:
            try:
                origin = origin_of(request.origin) or Origin.SUBMITTED
            except InvalidInputError as error:
                return result_message(Outcome(request.pair.id[:64], "invalid", message=str(error)))
            return result_message(
                await self._intake.submit(pair_input(request.pair), actor, origin=origin)
            )

        return in_order(requests, submit, "SubmitPairsRequest")


def submitter(context: Context) -> str:
    """Who the client says it is; a label, not an authority."""
    for key, value in context.invocation_metadata() or ():
        if key == ACTOR_KEY:
            text = value.decode(errors="replace") if isinstance(value, bytes) else value
            printable = "".join(c for c in text if c.isprintable()).strip()
            # The daemon's own names are not for others to take: they have quotas of their own.
            own = printable.startswith(OWN_PREFIX)
            return (f"claimed {printable}" if own else printable)[:MAX_ACTOR_CHARS] or UNKNOWN_ACTOR
    return UNKNOWN_ACTOR
