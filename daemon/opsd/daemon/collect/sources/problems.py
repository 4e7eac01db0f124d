"""Problems as they come in: form, held-out check, storage, then the answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from opsd.daemon.collect.ports import HeldOut
from opsd.daemon.store.sources_api import ProblemStore
from opsd.daemon.types.pairs import Origin, PairInput
from opsd.daemon.types.problems import AddProblemKind, Problem, ProblemInput
from opsd.daemon.types.text import normalise_prompt, prompt_key

MAX_PRIORITY = 1_000_000
_STAND_IN = "x"
"""For what a pair must have and a problem need not."""


class PairForm(Protocol):
    """``Intake``, which knows the limits."""

    def form_mistakes(self, given: PairInput) -> list[str]: ...

    async def mistakes(self, given: PairInput) -> list[str]:
        """With what the verifier has against the reference."""
        ...


@dataclass(frozen=True, slots=True)
class ProblemOutcome:
    """What became of a problem: an ``AddProblemKind`` but ID_CONFLICT, "held_out" or "invalid"."""

    id: str
    label: str
    message: str = ""
    duplicate_of: str = ""


class ProblemIntake:
    """Takes problems in; what it answered for is durable."""

    def __init__(
        self,
        store: ProblemStore,
        held_out: HeldOut,
        form: PairForm,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._held_out = held_out
        self._form = form
        self._clock = clock

    async def mistakes(self, given: ProblemInput) -> list[str]:
        """What is wrong, one sentence for each field; empty when nothing is."""
        pair = PairInput(
            id=given.id,
            prompt=given.prompt,
            solution=_STAND_IN,
            verifier=given.verifier,
            reference=given.reference or _STAND_IN,
            source=given.source,
            stratum=given.stratum,
        )
        # A reference that nobody knows yet cannot be asked about.
        known = bool(given.reference)
        found = await self._form.mistakes(pair) if known else self._form.form_mistakes(pair)
        if abs(given.priority) > MAX_PRIORITY:
            found.append(f"priority: {given.priority} is not within ±{MAX_PRIORITY}")
        if given.prompt.strip() and not normalise_prompt(given.prompt):
            found.append("prompt: it has no word, digit or operator")
        return found

    async def submit(
        self, given: ProblemInput, submitter: str, *, origin: Origin = Origin.SUBMITTED
    ) -> ProblemOutcome:
        """Raises StoreError; then nothing was stored, or it was and sending it again says so."""
        # A reference of white space is none.
        given = replace(given, reference=given.reference if given.reference.strip() else "")
        mistakes = await self.mistakes(given)
        if mistakes:
            return ProblemOutcome(given.id[:64], "invalid", "; ".join(mistakes))
        suite = self._held_out.is_held_out(given.prompt)
        if suite is not None:
            message = (
                f"the prompt is a held-out problem of suite {suite!r}, which is never attempted "
                "for training; leave it out"
            )
            return ProblemOutcome(given.id, "held_out", message)
        problem = make_problem(given, submitter, origin=origin, now_unix_s=self._clock())
        result = await asyncio.to_thread(self._store.add_problem, problem)
        if result.kind is AddProblemKind.ID_CONFLICT:
            message = f"id: {given.id} is taken by other content; send it under a new UUID"
            return ProblemOutcome(given.id, "invalid", message)
        stored = result.problem.input.id
        if result.kind is AddProblemKind.DUPLICATE:
            message = f"the same content is stored as {stored}"
            return ProblemOutcome(given.id, result.kind.value, message, duplicate_of=stored)
        return ProblemOutcome(given.id, result.kind.value)


def make_problem(
    given: ProblemInput,
    submitter: str,
    *,
    origin: Origin,
    now_unix_s: float,
    parent_id: str = "",
) -> Problem:
    """A new row."""
    return Problem(
        input=given,
        submitter=submitter,
        created_unix_s=now_unix_s,
        content_sha256=content_sha256(given),
        prompt_key=prompt_key(given.prompt),
        origin=origin,
        parent_id=parent_id,
    )


def content_sha256(problem: ProblemInput) -> str:
    """Of prompt, verifier and reference, each with its length before it."""
    digest = hashlib.sha256()
    for text in (problem.prompt, problem.verifier, problem.reference):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
