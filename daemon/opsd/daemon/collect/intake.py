"""One pair: form, screen, held-out check, verification, storage; then the answer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, Protocol, TypeVar

from prometheus_client import Counter

from opsd.daemon.collect.form import Form
from opsd.daemon.collect.ports import HeldOut, Matcher, NearDuplicates, Screen
from opsd.daemon.config.collect import CollectConfig, QuotaConfig
from opsd.daemon.errors import NotFoundError
from opsd.daemon.store.api import PairStore
from opsd.daemon.store.pair_counts import over_quota
from opsd.daemon.store.pair_rows import input_bytes
from opsd.daemon.types.pair_sets import AddRules, Quota
from opsd.daemon.types.pairs import (
    AddPairKind,
    AddPairResult,
    Origin,
    Pair,
    PairInput,
    PairStatus,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.text import prompt_key

P = ParamSpec("P")
T = TypeVar("T")

OWN_SUBMITTERS = frozenset({"opsd:harvest", "opsd:self-consistency", "opsd:self-play"})
"""The daemon's own sources, by the names they submit under."""
WRITERS = 32
"""Threads that wait for the store: as many pairs can share one commit."""

PAIRS = Counter("opsd_pairs_total", "Pairs received, by what became of them.", ["status"])


class Verifying(Protocol):
    """``VerifierPool``, as collecting uses it."""

    @property
    def known_verifiers(self) -> Sequence[str]: ...

    async def check_reference(self, verifier: str, reference: str) -> str: ...

    async def verify(self, verifier: str, reference: str, text: str | None) -> Verdict: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a pair; ``verdict`` is there when the pair is."""

    id: str
    # verified, unverified, quarantined, duplicate, held_out, invalid, refused_quota or purged.
    label: str
    verdict: Verdict | None = None
    message: str = ""
    already_stored: bool = False
    duplicate_of: str = ""


@dataclass(frozen=True, slots=True)
class IntakeRules:
    """What is looked at beside form, suites and verdict."""

    screen: Screen | None = None
    near: NearDuplicates | None = None
    add: AddRules = field(default_factory=AddRules)


def intake_rules(
    config: CollectConfig, *, screen: Screen | None = None, near: NearDuplicates | None = None
) -> IntakeRules:
    """As the configuration says."""
    same = config.near_duplicates
    add = AddRules(quota=quota(config.quota))
    if near is None or same == "off":
        return IntakeRules(screen, None, add)
    add = AddRules(
        is_near_duplicate=near.is_near_duplicate,
        same="answer" if same == "same_answer" else "solution",
        quota=add.quota,
    )
    return IntakeRules(screen, near, add)


def quota(config: QuotaConfig) -> Quota:
    return Quota(
        pairs_per_day=config.pairs_per_day,
        bytes_per_day=int(config.mib_per_day * (1 << 20)),
        pairs_stored=config.pairs_stored,
        # What the model makes itself has quotas of its own.
        exempt=frozenset(config.exempt) | OWN_SUBMITTERS,
    )


class Intake:
    """Takes pairs in; what it answered for is durable."""

    def __init__(
        self,
        store: PairStore,
        verifier: Verifying,
        held_out: HeldOut,
        form: Form,
        clock: Callable[[], float] = time.time,
        *,
        rules: IntakeRules | None = None,
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._held_out = held_out
        self._form = form
        self._clock = clock
        self._rules = rules or IntakeRules()
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="opsd-collect")

    def close(self) -> None:
        self._threads.shutdown()

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs a store call in the intake's own threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: work(*args, **kwargs))

    def form_mistakes(self, given: PairInput) -> list[str]:
        """Those that show without asking the verifier."""
        return self._form.mistakes(given)

    async def mistakes(self, given: PairInput) -> list[str]:
        """What is wrong with a pair; nothing of it is stored. Raises NotReadyError and
        OverloadedError."""
        found = self._form.mistakes(given)
        if found:
            return found
        wrong = await self._verifier.check_reference(given.verifier, given.reference)
        return [f"reference: for the verifier {given.verifier}: {wrong}"] if wrong else []

    async def submit(
        self, given: PairInput, submitter: str, *, origin: Origin = Origin.SUBMITTED
    ) -> Outcome:
        """Raises NotReadyError, OverloadedError or StoreError; then nothing was stored, or it was
        and sending it again says so."""
        outcome = await self._decide(given, submitter, origin)
        PAIRS.labels(outcome.label).inc()
        return outcome

    async def _decide(self, given: PairInput, submitter: str, origin: Origin) -> Outcome:
        mistakes = await self.mistakes(given)
        if mistakes:
            return Outcome(given.id[:64], "invalid", message="; ".join(mistakes))
        notes: tuple[str, ...] = ()
        quarantine = ""
        if self._rules.screen is not None:
            screened = await self.call(self._rules.screen.screen, given)
            if screened.refusal:
                return Outcome(given.id, "invalid", message=screened.refusal)
            given, quarantine, notes = screened.pair, screened.quarantine, screened.notes
        held_out = self._held_out_message(given.prompt)
        if held_out:
            return Outcome(given.id, "held_out", message=held_out)
        digest = content_sha256(given)
        known = await self.call(self._known, given, submitter, digest)
        if known is not None:
            return _outcome(given, known)
        verdict = await self._verifier.verify(given.verifier, given.reference, given.solution)
        passed = verdict.kind is VerdictKind.PASS
        status = PairStatus.VERIFIED if passed else PairStatus.UNVERIFIED
        pair = Pair(
            input=given,
            status=PairStatus.QUARANTINED if quarantine else status,
            verdict=verdict,
            submitter=submitter,
            created_unix_s=self._clock(),
            content_sha256=digest,
            prompt_key=prompt_key(given.prompt),
            origin=origin,
            quarantine_reason=quarantine,
        )
        return _outcome(given, await self.call(self._add, pair), notes)

    def _add(self, pair: Pair) -> AddPairResult:
        near = self._rules.near
        # Outside the transaction: it takes longer than the rest of it.
        keys = () if near is None else near.band_keys(pair.input.prompt)
        return self._store.add_pair(pair, band_keys=keys, rules=self._rules.add)

    def _known(self, given: PairInput, submitter: str, digest: str) -> AddPairResult | None:
        """The answer, where the verifier need not be put to work. ``add_pair`` looks again, and
        counts."""
        try:
            known = self._store.get_pair(given.id)
        except NotFoundError:
            return self._over_quota(given, submitter)
        if known.status is PairStatus.PURGED:
            return AddPairResult(AddPairKind.PURGED, known)
        same = known.content_sha256 == digest
        kind = AddPairKind.ALREADY_STORED if same else AddPairKind.ID_CONFLICT
        return AddPairResult(kind, known)

    def _over_quota(self, given: PairInput, submitter: str) -> AddPairResult | None:
        limits = self._rules.add.quota
        if not limits.is_on or submitter in limits.exempt:
            return None
        detail = over_quota(limits, self._store.quota_use(submitter), input_bytes(given))
        return AddPairResult(AddPairKind.OVER_QUOTA, None, detail) if detail else None

    def _held_out_message(self, prompt: str) -> str:
        """Why it may not be trained on; "" when it may."""
        index = self._held_out
        if isinstance(index, Matcher):
            match = index.match(prompt)
            if match is None:
                return ""
            # Which item it is, and what gave it away, would tell a sealed suite problem by problem.
            return (
                f"the prompt is a held-out problem of suite {match.suite!r} ({match.how}), which "
                "is never trained on; leave it out"
            )
        suite = index.is_held_out(prompt)
        if suite is None:
            return ""
        return (
            f"the prompt is a held-out problem of suite {suite!r}, which is never trained on; "
            "leave it out"
        )


def content_sha256(pair: PairInput) -> str:
    """Of prompt, solution, verifier and reference, each with its length before it."""
    digest = hashlib.sha256()
    for text in (pair.prompt, pair.solution, pair.verifier, pair.reference):
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


def _outcome(given: PairInput, result: AddPairResult, notes: tuple[str, ...] = ()) -> Outcome:
    kind, stored = result.kind, result.pair
    if stored is None:
        return Outcome(given.id, "refused_quota", message=result.detail)
    if kind is AddPairKind.ID_CONFLICT:
        message = f"id: {given.id} is taken by other content; send this pair under a new UUID"
        return Outcome(given.id, "invalid", message=message)
    if kind is AddPairKind.DUPLICATE:
        message = f"the same content is stored as {stored.input.id}"
        return Outcome(given.id, "duplicate", message=message, duplicate_of=stored.input.id)
    if kind is AddPairKind.NEAR_DUPLICATE:
        message = (
            f"a near-duplicate of {stored.input.id}: nearly the same problem, with the same "
            "answer and solution as far as collect.near_duplicates asks"
        )
        return Outcome(given.id, "duplicate", message=message, duplicate_of=stored.input.id)
    if kind is AddPairKind.PURGED:
        message = (
            f"this pair was purged (as {stored.input.id}) and is not stored again; to send other "
            "content, use a new UUID"
        )
        return Outcome(given.id, "purged", message=message)
    return Outcome(
        given.id,
        stored.status.value,
        verdict=stored.verdict,
        message="; ".join([*_kept_apart(stored), *notes]),
        already_stored=kind is AddPairKind.ALREADY_STORED,
    )


def _kept_apart(stored: Pair) -> list[str]:
    """Why a stored pair is not trained on."""
    if stored.status is PairStatus.QUARANTINED:
        return [f"quarantined, not trained on until it is released: {stored.quarantine_reason}"]
    if stored.status is PairStatus.UNVERIFIED:
        return [
            f"kept, but not trained on: the {stored.verdict.verifier} verifier says "
            f"{stored.verdict.kind}: {stored.verdict.evidence}"
        ]
    return []
