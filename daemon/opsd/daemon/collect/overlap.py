"""Stored pairs that a suite holds: found, and put into quarantine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from opsd.daemon.collect.curation import CHANGED
from opsd.daemon.collect.ports import CurationStore, Matcher
from opsd.daemon.types.pair_sets import PairFilter, TrainedRun
from opsd.daemon.types.pairs import PairStatus

SCAN_BATCH = 500
MAX_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Example:
    """One pair that a suite holds."""

    pair_id: str
    suite: str
    item_id: str
    how: str
    evidence: str


@dataclass(slots=True)
class OverlapReport:
    """What was found; ``last_seq`` is where a scan that was stopped may go on."""

    num_scanned: int = 0
    num_quarantined: int = 0
    num_known: int = 0  # overlapping, and in quarantine already
    by_how: dict[str, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    trained_run_ids: list[str] = field(default_factory=list)
    adapters: list[str] = field(default_factory=list)
    last_seq: int = 0
    is_complete: bool = False


def find_overlaps(
    store: CurationStore,
    matcher: Matcher,
    *,
    after_seq: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
    on_batch: Callable[[OverlapReport, Mapping[str, list[str]]], None] = lambda report, held: None,
) -> OverlapReport:
    """Looks at every stored pair from ``after_seq`` on; changes none of them. Blocks; looks at
    ``should_stop`` after every batch. ``on_batch`` is given the ids that each suite holds."""
    report = OverlapReport(last_seq=after_seq)
    while not should_stop():
        batch = store.scan_pairs(after_seq=report.last_seq, limit=SCAN_BATCH)
        if not batch:
            report.is_complete = True
            break
        held: dict[str, list[str]] = {}
        for seq, pair in batch:
            report.num_scanned += 1
            report.last_seq = seq
            match = matcher.match(pair.input.prompt)
            if match is None:
                continue
            report.by_how[str(match.how)] = report.by_how.get(str(match.how), 0) + 1
            if len(report.examples) < MAX_EXAMPLES:
                report.examples.append(
                    Example(
                        pair.input.id, match.suite, match.item_id, str(match.how), match.evidence
                    )
                )
            held.setdefault(match.suite, []).append(pair.input.id)
            report.num_known += pair.status is PairStatus.QUARANTINED
        on_batch(report, held)
    return report


def quarantine_overlaps(
    store: CurationStore,
    matcher: Matcher,
    actor: str,
    *,
    after_seq: int = 0,
    should_stop: Callable[[], bool] = lambda: False,
) -> OverlapReport:
    """Puts every stored pair from ``after_seq`` on whose prompt a suite holds into quarantine.

    Pairs are read in batches, and only those that overlap are written: whoever adds pairs is not
    kept waiting. Done twice, or gone on with from ``last_seq``, it comes to the same. Pairs that
    are added while it runs must be held back by the intake's own check: give the new suite to that
    one first. Its audit entries name the pairs, the runs and the adapters.
    """

    def take(report: OverlapReport, held: Mapping[str, list[str]]) -> None:
        for suite, ids in sorted(held.items()):
            _quarantine(store, suite, ids, actor, report)

    return find_overlaps(
        store, matcher, after_seq=after_seq, should_stop=should_stop, on_batch=take
    )


def _quarantine(
    store: CurationStore, suite: str, ids: list[str], actor: str, report: OverlapReport
) -> None:
    wanted = PairFilter(ids=tuple(ids))
    runs: list[TrainedRun] = store.trained_runs(wanted)
    for run in runs:
        if run.run_id not in report.trained_run_ids:
            report.trained_run_ids.append(run.run_id)
            report.adapters += [name for name in run.adapters if name not in report.adapters]
    reason = f"held-out problem of suite {suite!r}"
    held = PairStatus.QUARANTINED
    if store.count_filtered(PairFilter(ids=wanted.ids, status=held)) == len(ids):
        return
    store.audit_change(
        wanted,
        actor=actor,
        action="pairs.quarantine",
        reason=reason,
        num_pairs=len(ids),
        runs=[run.run_id for run in runs],
        adapters=[name for run in runs for name in run.adapters],
    )
    changed = store.change_pairs(wanted, held, reason=reason).num_removed
    CHANGED.labels("quarantine").inc(changed)
    report.num_quarantined += changed
