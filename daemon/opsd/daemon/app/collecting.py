"""What collecting is made of: hygiene, near-duplicates, and what a new suite finds in the store."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from opsd.daemon.collect import overlap
from opsd.daemon.collect.hygiene import near
from opsd.daemon.collect.hygiene.canary import CanaryPlan, CanaryScanner
from opsd.daemon.collect.hygiene.contamination import HeldOutIndex, HeldOutMatch, Renumbered
from opsd.daemon.collect.hygiene.control_tokens import read_control_tokens
from opsd.daemon.collect.hygiene.screen import Screen
from opsd.daemon.collect.hygiene.scrub import load_scrubber
from opsd.daemon.collect.ports import CurationStore
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.serve.attempts import AttemptRecorder
from opsd.daemon.serve.ports import AttemptSink
from opsd.daemon.types.pairs import Attempt, SuiteItem
from opsd.daemon.types.suites import OverlapReport

log = logging.getLogger(__name__)


class Near:
    """Implements ``collect.ports.NearDuplicates``."""

    def band_keys(self, prompt: str) -> tuple[int, ...]:
        return near.band_keys(prompt)

    def is_near_duplicate(self, a: str, b: str) -> bool:
        return near.is_near_duplicate(a, b)


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Positions of texts that say nearly the same, each with the first of its kind before it."""
    firsts: dict[int, list[int]] = {}
    found = []
    for position, text in enumerate(texts):
        keys = near.band_keys(text)
        known = sorted({first for key in keys for first in firsts.get(key, ())})
        first = next((one for one in known if near.is_near_duplicate(texts[one], text)), None)
        if first is not None:
            found.append((first, position))
            continue
        for key in keys:
            firsts.setdefault(key, []).append(position)
    return found


class CurrentHeldOut:
    """What collecting and runs ask about a prompt; the suites behind it may change at any time."""

    def __init__(self, renumbered: Mapping[str, Renumbered] | None = None) -> None:
        self._renumbered = dict(renumbered or {})
        self._index = HeldOutIndex({})

    def replace(self, items: Mapping[str, Sequence[SuiteItem]]) -> None:
        """From now on. Blocks while the index is made; the one before answers meanwhile."""
        self._index = HeldOutIndex(items, self._renumbered)

    def is_held_out(self, prompt: str) -> str | None:
        return self._index.is_held_out(prompt)

    def match(self, prompt: str) -> HeldOutMatch | None:
        return self._index.match(prompt)


class PairOverlap:
    """Implements ``gate.ports.TrainingOverlap``: by the rule that a pair which comes in is held
    to."""

    def __init__(
        self, store: CurationStore, renumbered: Mapping[str, Renumbered] | None = None
    ) -> None:
        self._store = store
        self._renumbered = dict(renumbered or {})

    def find_overlaps(self, suite: str, items: Sequence[SuiteItem]) -> OverlapReport:
        return _report(overlap.find_overlaps(self._store, self._index(suite, items)))

    def quarantine_overlaps(
        self, suite: str, items: Sequence[SuiteItem], actor: str
    ) -> OverlapReport:
        return _report(overlap.quarantine_overlaps(self._store, self._index(suite, items), actor))

    def _index(self, suite: str, items: Sequence[SuiteItem]) -> HeldOutIndex:
        return HeldOutIndex({suite: items}, self._renumbered)


def _report(found: overlap.OverlapReport) -> OverlapReport:
    exact = found.by_how.get("exact", 0)
    return OverlapReport(
        num_exact=exact,
        num_near=sum(found.by_how.values()) - exact,
        num_known=found.num_known,
        pair_ids=tuple(example.pair_id for example in found.examples),
    )


class Canaries:
    """Plants leak canaries in solutions and looks for them in what the model writes."""

    def __init__(self, secret: bytes, fraction: float) -> None:
        self._plan = CanaryPlan(secret, fraction)
        self._scanner = CanaryScanner(self._plan.canaries)

    def planted(self, pair_id: str, solution: str) -> str:
        return self._plan.planted(pair_id, solution)

    def find(self, text: str) -> tuple[str, ...]:
        return self._scanner.find(text)

    def look_through(self, text: str, adapter: str, *, place: str, attempt: str = "-") -> None:
        """Counts what is found, and says so."""
        found = self._scanner.count(text, place)
        if found:
            log.error(
                "event=canary_leaked place=%s adapter=%s attempt=%s canaries=%d",
                place,
                adapter,
                attempt,
                len(found),
            )


def looker(canaries: Canaries | None, place: str) -> Callable[[str, str], None] | None:
    """Looks through a text that an adapter wrote; None where there is nothing to look for."""
    return None if canaries is None else partial(canaries.look_through, place=place)


class WatchedAttempts:
    """The store as attempts go into it; looks through each completion, outside the serving path.

    Without a store they are looked through and forgotten.
    """

    def __init__(self, store: AttemptSink | None, canaries: Canaries) -> None:
        self._store = store
        self._canaries = canaries

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        if self._store is not None:
            self._store.add_attempts(attempts)
        for seen in attempts:
            self._canaries.look_through(
                seen.completion,
                seen.adapter,
                place="completion",
                attempt="-" if self._store is None else seen.id,
            )


def recorder_of(
    config: OpsdConfig, store: AttemptSink, canaries: Canaries | None
) -> AttemptRecorder | None:
    """None where completions are neither kept nor looked through."""
    kept = store if config.server.record_attempts else None
    if canaries is not None:
        watched = WatchedAttempts(kept, canaries)
        return AttemptRecorder(watched, done="looked_through" if kept is None else "kept")
    return None if kept is None else AttemptRecorder(kept)


def canaries_of(config: OpsdConfig) -> Canaries | None:
    """None where none was ever planted. Raises ConfigError for a secret that cannot be read."""
    path = config.state_dir / "canary.key"
    fraction = config.collect.hygiene.canary_fraction
    if not fraction and not path.exists():
        return None
    try:
        if not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(32))
                file.flush()
                os.fsync(file.fileno())
        return Canaries(path.read_bytes(), fraction)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: the secret of the leak canaries cannot be used: {error}; put the file back, "
            "or remove it to plant new ones"
        ) from error


def renumbered_of(config: OpsdConfig) -> dict[str, Renumbered]:
    """What the configured suites say of copies with other numbers."""
    return {suite.name: Renumbered(suite.renumbered) for suite in config.gate.suites}


def screen_of(config: OpsdConfig, canaries: Canaries | None) -> Screen:
    """Raises ConfigError for a scrubber that is not there."""
    hygiene = config.collect.hygiene
    tokens = read_control_tokens(Path(config.model.path))
    scrub = load_scrubber(hygiene.scrubber)
    if canaries is None:
        return Screen(hygiene, tokens, scrub)
    return Screen(hygiene, tokens, scrub, canaries.find)
