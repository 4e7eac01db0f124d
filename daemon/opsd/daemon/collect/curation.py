"""What an operator does to stored pairs: quarantine, release, purge; and what was made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from prometheus_client import Counter

from opsd.daemon.collect.ports import CurationStore, HeldOut, NearDuplicates
from opsd.daemon.errors import InvalidInputError, StateError, StoreError
from opsd.daemon.types.pair_sets import PairFilter, Sweep, TrainedRun
from opsd.daemon.types.pairs import PairStatus

log = logging.getLogger(__name__)

MAX_IDS: Final = 10_000
MAX_REASON_CHARS: Final = 4096
_SCAN_BATCH: Final = 500
_NEED_THEIR_SHARD: Final = frozenset({"queued", "preparing", "training"})

CHANGED = Counter(
    "opsd_pairs_changed_total", "Stored pairs changed by operators and new suites.", ["action"]
)


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did, or would do."""

    num_pairs: int
    audit_id: int  # 0: nothing was changed
    runs: tuple[TrainedRun, ...]
    num_held_out: int = 0  # not released: a suite holds their problems


class Curator:
    """Changes pairs in small batches, so that nobody who adds some waits for long. Blocks."""

    def __init__(
        self,
        store: CurationStore,
        near: NearDuplicates | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self._store = store
        self._near = near
        self._held_out = held_out

    def quarantine(
        self, wanted: PairFilter, *, reason: str, actor: str, dry_run: bool = False
    ) -> Change:
        """Raises InvalidInputError when nothing is named or no reason is given."""
        _check(wanted, reason)
        quarantined = PairStatus.QUARANTINED

        def step(after_seq: int) -> Sweep:
            return self._store.change_pairs(wanted, quarantined, after_seq=after_seq, reason=reason)

        # Those that are there already are not changed again.
        already = self._store.count_filtered(replace(wanted, status=quarantined))
        matching = self._store.count_filtered(wanted) - already
        return self._change("pairs.quarantine", wanted, matching, step, reason, actor, dry_run)

    def release(
        self, wanted: PairFilter, *, reason: str, actor: str, dry_run: bool = False
    ) -> Change:
        """What a suite holds stays where it is. Raises InvalidInputError when nothing is named or
        no reason is given."""
        _check(wanted, reason)
        wanted = replace(wanted, status=PairStatus.QUARANTINED)
        free: list[str] = []
        num_held_out = 0
        for pair_id, prompt in self._prompts(wanted):
            if self._held_out is not None and self._held_out.is_held_out(prompt) is not None:
                num_held_out += 1
            else:
                free.append(pair_id)

        def step(done: int) -> Sweep:
            some = replace(wanted, ids=tuple(free[done : done + _SCAN_BATCH]))
            changed = self._store.change_pairs(some, PairStatus.VERIFIED).num_removed
            done += _SCAN_BATCH
            return Sweep(changed, done, done >= len(free))

        done = self._change("pairs.release", wanted, len(free), step, reason, actor, dry_run)
        return replace(done, num_held_out=num_held_out)

    def purge(
        self,
        wanted: PairFilter,
        *,
        reason: str,
        actor: str,
        dry_run: bool = False,
        delete_shards: bool = False,
    ) -> Change:
        """Erases what the pairs say, and with ``delete_shards`` the shards that repeat it.

        Raises InvalidInputError when nothing is named or no reason is given, StateError when a
        shard that is to go may still be needed, StoreError when one could not be deleted.
        """
        _check(wanted, reason)
        runs = self._store.trained_runs(wanted)
        if delete_shards:
            _require_over(runs)

        def step(after_seq: int) -> Sweep:
            keys = None if self._near is None else self._near.band_keys
            return self._store.purge_pairs(wanted, after_seq=after_seq, band_keys=keys)

        matching = self._store.count_filtered(wanted)
        # Pairs that were purged before may still stand in a shard.
        again = delete_shards and any(run.shard_path for run in runs)
        done = self._change(
            "pairs.purge", wanted, matching, step, reason, actor, dry_run, even_if_none=again
        )
        if delete_shards and not dry_run:
            _delete_shards(runs)
        return done

    def _prompts(self, wanted: PairFilter) -> Iterator[tuple[str, str]]:
        after_seq = 0
        while batch := self._store.filtered_pairs(wanted, after_seq=after_seq, limit=_SCAN_BATCH):
            after_seq = batch[-1][0]
            yield from ((pair.input.id, pair.input.prompt) for _, pair in batch)

    def _change(
        self,
        action: str,
        wanted: PairFilter,
        matching: int,
        step: Callable[[int], Sweep],
        reason: str,
        actor: str,
        dry_run: bool,
        *,
        even_if_none: bool = False,
    ) -> Change:
        runs = tuple(self._store.trained_runs(wanted))
        if dry_run or (matching == 0 and not even_if_none):
            return Change(matching, 0, runs)
        # Before the first change: what is changed when the daemon dies midway has its entry.
        audit_id = self._store.audit_change(
            wanted,
            actor=actor,
            action=action,
            reason=reason,
            num_pairs=matching,
            runs=[run.run_id for run in runs],
            adapters=[name for run in runs for name in run.adapters],
        )
        changed = in_steps(step)
        CHANGED.labels(action.removeprefix("pairs.")).inc(changed)
        log.info("event=%s pairs=%d what=%s actor=%s", action, changed, wanted, actor)
        return Change(changed, audit_id, runs)


def in_steps(step: Callable[[int], Sweep]) -> int:
    """Sums what the steps changed, until the last."""
    changed = after_seq = 0
    while True:
        done = step(after_seq)
        changed += done.num_removed
        if done.is_done:
            return changed
        after_seq = done.last_seq


def _check(wanted: PairFilter, reason: str) -> None:
    if not wanted.names_pairs:
        raise InvalidInputError("selector: name ids, a submitter, a source or an origin")
    if len(wanted.ids) > MAX_IDS:
        raise InvalidInputError(
            f"selector: {len(wanted.ids)} ids, at most {MAX_IDS} in one call; make it several"
        )
    if not reason.strip():
        raise InvalidInputError("reason: it is empty; say why, it goes into the audit log")
    if len(reason) > MAX_REASON_CHARS:
        raise InvalidInputError(
            f"reason: {len(reason)} characters, at most {MAX_REASON_CHARS} are kept"
        )


def _require_over(runs: Sequence[TrainedRun]) -> None:
    for run in runs:
        if run.state in _NEED_THEIR_SHARD and run.num_pairs:
            raise StateError(
                f"run {run.run_id} is {run.state} and reads its shard: cancel it first "
                f"(`opsd runs cancel {run.run_id}`), or purge without the shards; nothing was "
                "changed"
            )


def _delete_shards(runs: Sequence[TrainedRun]) -> None:
    for run in runs:
        if not run.shard_path or not run.num_pairs:
            continue
        try:
            Path(run.shard_path).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(
                f"{run.shard_path}: the shard of run {run.run_id} could not be deleted: "
                f"{error.strerror}; the pairs are purged, delete the file by hand"
            ) from error
