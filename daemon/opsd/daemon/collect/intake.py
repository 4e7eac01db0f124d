"""What happens to one pair: form, held-out check, verification, storage; then the answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from prometheus_client import Counter

from opsd.daemon.collect.form import Form
from opsd.daemon.collect.ports import HeldOut
from opsd.daemon.errors import NotFoundError
from opsd.daemon.store.api import PairStore
from opsd.daemon.types.pairs import (
    AddPairKind,
    Pair,
    PairInput,
    PairStatus,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.text import prompt_key

P = ParamSpec("P")
T = TypeVar("T")

WRITERS = 32
"""Threads that wait for the store: as many pairs can share one commit."""

PAIRS = Counter("opsd_pairs_total", "Pairs received, by what became of them.", ["status"])


class Verifying(Protocol):
    """``VerifierPool``, as collecting uses it."""

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a pair; ``verdict`` is there when the pair is."""

    id: str
    label: str  # "verified", "unverified", "duplicate", "held_out" or "invalid"
    verdict: Verdict | None = None
    message: str = ""
    already_stored: bool = False
    duplicate_of: str = ""


class Intake:
    """Takes pairs in; what it answered for is durable."""

    def __init__(
        self,
        store: PairStore,
        verifier: Verifying,
        held_out: HeldOut,
        form: Form,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._held_out = held_out
        self._form = form
        self._clock = clock
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="opsd-collect")

    def close(self) -> None:
        self._threads.shutdown()

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a store call in the intake's own threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def mistakes(self, given: PairInput) -> list[str]:
        return self._form.mistakes(given)

    async def submit(self, given: PairInput, submitter: str) -> Outcome:
        """Raises NotReadyError, OverloadedError or StoreError; then nothing was stored, or it was
        and sending it again says so."""
        outcome = await self._decide(given, submitter)
        PAIRS.labels(outcome.label).inc()
        return outcome

    async def _decide(self, given: PairInput, submitter: str) -> Outcome:
        mistakes = self.mistakes(given)
        if mistakes:
            return Outcome(given.id[:64], "invalid", message="; ".join(mistakes))
        suite = self._held_out.is_held_out(given.prompt)
        if suite is not None:
            message = (
                f"the prompt is a held-out problem of suite {suite!r}, which is never trained on; "
                "leave it out"
            )
            return Outcome(given.id, "held_out", message=message)
        digest = content_sha256(given)
        try:
            known = await self.call(self._store.get_pair, given.id)
        except NotFoundError:
            pass
        else:
            # Sent again: verifying it a second time could only cost time.
            same = known.content_sha256 == digest
            return _outcome(
                given, known, AddPairKind.ALREADY_STORED if same else AddPairKind.ID_CONFLICT
            )
        verdict = await self._verifier.verify(given.verifier, given.reference, given.solution)
        passed = verdict.kind is VerdictKind.PASS
        pair = Pair(
            input=given,
            status=PairStatus.VERIFIED if passed else PairStatus.UNVERIFIED,
            verdict=verdict,
            submitter=submitter,
            created_unix_s=self._clock(),
            content_sha256=digest,
            prompt_key=prompt_key(given.prompt),
        )
        result = await self.call(self._store.add_pair, pair)
        return _outcome(given, result.pair, result.kind)


def content_sha256(pair: PairInput) -> str:
    """Of prompt, solution, verifier and reference, each with its length before it."""
    digest = hashlib.sha256()
    for text in (pair.prompt, pair.solution, pair.verifier, pair.reference):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _outcome(given: PairInput, stored: Pair, kind: AddPairKind) -> Outcome:
    if kind is AddPairKind.ID_CONFLICT:
        message = f"id: {given.id} is taken by other content; send this pair under a new UUID"
        return Outcome(given.id, "invalid", message=message)
    if kind is AddPairKind.DUPLICATE:
        message = f"the same content is stored as {stored.input.id}"
        return Outcome(given.id, "duplicate", message=message, duplicate_of=stored.input.id)
    message = ""
    if stored.status is PairStatus.UNVERIFIED:
        message = (
            f"kept, but not trained on: the {stored.verdict.verifier} verifier says "
            f"{stored.verdict.kind}: {stored.verdict.evidence}"
        )
    return Outcome(
        given.id,
        stored.status.value,
        verdict=stored.verdict,
        message=message,
        already_stored=kind is AddPairKind.ALREADY_STORED,
    )
