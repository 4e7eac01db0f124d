"""Answers and outcomes that come for an attempt after it went out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from opsd.daemon.collect.intake import Outcome
from opsd.daemon.collect.sources import metrics
from opsd.daemon.collect.sources.majority import Judge
from opsd.daemon.collect.sources.ports import PairIntake
from opsd.daemon.collect.sources.problems import PairForm, ProblemIntake
from opsd.daemon.errors import InvalidInputError, StateError
from opsd.daemon.store.sources_api import OutcomeStore
from opsd.daemon.types.ids import pair_id, problem_id
from opsd.daemon.types.pairs import Attempt, Origin, PairInput, Verdict, VerdictKind
from opsd.daemon.types.problems import AttemptOutcome, AttemptOutcomeKind, ProblemInput

MAX_COMMENT_BYTES = 4 << 10


@dataclass(frozen=True, slots=True)
class Answer:
    """The true answer to an attempt's problem."""

    attempt_id: str
    verifier: str
    reference: str
    solution: str = ""  # worked out, by whoever sends it
    source: str = ""
    stratum: str = ""


@dataclass(frozen=True, slots=True)
class AnswerOutcome:
    """What came of an answer; ``problem_id`` is set when the attempt did not pass."""

    verdict: Verdict
    own_pair: Outcome | None = None
    solution_pair: Outcome | None = None
    problem_id: str = ""


class AnswerIntake:
    """Verifies the attempt itself; what the sender says of it is not asked."""

    def __init__(
        self,
        store: OutcomeStore,
        attempts: Callable[[str], Awaitable[Attempt]],
        verifier: Judge,
        pairs: PairIntake,
        problems: ProblemIntake,
        form: PairForm,
    ) -> None:
        """``attempts`` finds an attempt by its id, or raises NotFoundError."""
        self._store = store
        self._attempts = attempts
        self._verifier = verifier
        self._pairs = pairs
        self._problems = problems
        self._form = form

    async def answer(self, given: Answer, submitter: str) -> AnswerOutcome:
        """Stores the verdict as a verified outcome, and makes of the attempt

        - where it passed, a pair of its own completion,
        - where it failed, a problem for the model to try again,

        and a pair of the solution, where one was sent. Sent again it stores nothing twice.

        Raises NotFoundError (no such attempt), InvalidInputError, StateError (the verifier could
        not tell), ConflictError (another answer gave another verdict before), or what the intake
        raises: then what is missing is stored by sending it again.
        """
        attempt = await self._attempts(given.attempt_id)
        own = self._pair(given, attempt, attempt.completion)
        solution = self._pair(given, attempt, given.solution) if given.solution else None
        # Before anything is stored: nothing is half-accepted.
        await self._check(given, attempt, solution)
        verdict = await self._verifier.verify(given.verifier, given.reference, attempt.completion)
        if verdict.kind is VerdictKind.ERROR:
            raise StateError(
                f"attempt {attempt.id} could not be verified against the reference: "
                f"{verdict.evidence}; nothing was stored"
            )
        passed = verdict.kind is VerdictKind.PASS
        kind = AttemptOutcomeKind.ACCEPTED if passed else AttemptOutcomeKind.REJECTED
        await self._store_outcome(
            attempt.id, kind, submitter, verified=True, comment=verdict.evidence
        )
        own_pair = solution_pair = None
        retry = ""
        if passed:
            own_pair = await self._pairs.submit(own, submitter, origin=Origin.FEEDBACK)
        else:
            retry = await self._keep_problem(given, attempt, submitter)
        if solution is not None:
            solution_pair = await self._pairs.submit(solution, submitter, origin=Origin.FEEDBACK)
        metrics.ANSWERS.labels(verdict.kind.value).inc()
        return AnswerOutcome(verdict, own_pair, solution_pair, retry)

    async def outcome(
        self, attempt_id: str, kind: AttemptOutcomeKind, reporter: str, comment: str = ""
    ) -> tuple[AttemptOutcome, bool]:
        """What somebody reports: kept, never evidence. The outcome that stands, and whether it is
        new. Raises NotFoundError, InvalidInputError, or ConflictError (the other was reported)."""
        size_bytes = len(comment.encode(errors="surrogatepass"))
        if size_bytes > MAX_COMMENT_BYTES:
            raise InvalidInputError(
                f"comment: {size_bytes} bytes, more than the {MAX_COMMENT_BYTES} allowed"
            )
        attempt = await self._attempts(attempt_id)
        return await self._store_outcome(
            attempt.id, kind, reporter, verified=False, comment=comment
        )

    async def _store_outcome(
        self,
        attempt_id: str,
        kind: AttemptOutcomeKind,
        reporter: str,
        *,
        verified: bool,
        comment: str,
    ) -> tuple[AttemptOutcome, bool]:
        stored, is_new = await asyncio.to_thread(
            self._store.add_attempt_outcome,
            attempt_id,
            kind,
            reporter=reporter,
            verified=verified,
            comment=comment,
        )
        if is_new:
            metrics.OUTCOMES.labels(kind.value, "verifier" if verified else "reporter").inc()
        return stored, is_new

    def _pair(self, given: Answer, attempt: Attempt, solution: str) -> PairInput:
        return PairInput(
            id=pair_id(attempt.prompt, solution, given.verifier, given.reference),
            prompt=attempt.prompt,
            solution=solution,
            verifier=given.verifier,
            reference=given.reference,
            source=given.source,
            stratum=given.stratum,
        )

    async def _check(self, given: Answer, attempt: Attempt, solution: PairInput | None) -> None:
        """Raises InvalidInputError. An empty or odd completion is the model's doing: it fails."""
        mistakes = await self._form.mistakes(solution or self._pair(given, attempt, "x"))
        if mistakes:
            raise InvalidInputError("; ".join(mistakes))

    async def _keep_problem(self, given: Answer, attempt: Attempt, submitter: str) -> str:
        problem = ProblemInput(
            id=problem_id(attempt.prompt, given.verifier, given.reference),
            prompt=attempt.prompt,
            verifier=given.verifier,
            reference=given.reference,
            source=given.source,
            stratum=given.stratum,
        )
        kept = await self._problems.submit(problem, submitter, origin=Origin.FEEDBACK)
        if kept.label in ("stored", "already_stored"):
            return problem.id
        return kept.duplicate_of
