"""CurationService of collection.proto."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

from opsd.daemon.collect.convert import STORED_STATUSES, origin_of, result_message
from opsd.daemon.collect.curation import Change, Curator
from opsd.daemon.collect.intake import Outcome, Verifying, quota
from opsd.daemon.collect.ports import CurationStore, HeldOut, NearDuplicates
from opsd.daemon.collect.reverify import reverify
from opsd.daemon.collect.service import Context, submitter
from opsd.daemon.config.collect import CollectConfig
from opsd.daemon.types.pair_sets import GroupCount, PairFilter
from opsd.daemon.types.pairs import PairStatus
from opsd.v1 import collection_pb2 as pb
from opsd.v1 import collection_pb2_grpc as pb_grpc

MAX_ROWS = 100
"""Of one kind in the statistics."""


class CurationService(pb_grpc.CurationServiceServicer):
    """Raises the errors of ``opsd.daemon.errors``; an interceptor makes statuses of them."""

    def __init__(
        self,
        store: CurationStore,
        verifier: Verifying,
        config: CollectConfig,
        *,
        near: NearDuplicates | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._quota = quota(config.quota)
        self._curator = Curator(store, near, held_out)

    async def QuarantinePairs(
        self, request: pb.ChangePairsRequest, context: Context
    ) -> pb.ChangePairsResponse:
        change = await asyncio.to_thread(
            self._curator.quarantine,
            pair_filter(request.selector),
            reason=request.reason,
            actor=request.actor or submitter(context),
            dry_run=request.dry_run,
        )
        return await asyncio.to_thread(_change_message, change)

    async def ReleasePairs(
        self, request: pb.ChangePairsRequest, context: Context
    ) -> pb.ChangePairsResponse:
        change = await asyncio.to_thread(
            self._curator.release,
            pair_filter(request.selector),
            reason=request.reason,
            actor=request.actor or submitter(context),
            dry_run=request.dry_run,
        )
        return await asyncio.to_thread(_change_message, change)

    async def PurgePairs(
        self, request: pb.PurgePairsRequest, context: Context
    ) -> pb.ChangePairsResponse:
        change = await asyncio.to_thread(
            self._curator.purge,
            pair_filter(request.selector),
            reason=request.reason,
            actor=request.actor or submitter(context),
            dry_run=request.dry_run,
            delete_shards=request.delete_shards,
        )
        return await asyncio.to_thread(_change_message, change)

    async def ReverifyPairs(
        self, request: pb.ReverifyPairsRequest, context: Context
    ) -> AsyncIterator[pb.PairResult]:
        wanted = pair_filter(
            request.selector,
            STORED_STATUSES.get(request.status or pb.PAIR_STATUS_UNVERIFIED, PairStatus.PURGED),
        )
        changed = 0
        try:
            async for pair in reverify(
                self._store, self._verifier, wanted, failed_too=request.failed_too
            ):
                changed += 1
                yield result_message(
                    Outcome(pair.input.id, pair.status.value, verdict=pair.verdict)
                )
        finally:
            if changed:
                await asyncio.to_thread(
                    self._store.add_audit,
                    actor=request.actor or submitter(context),
                    action="pairs.reverify",
                    subject=str(wanted),
                    reason="verified again",
                    detail_json=json.dumps({"num_pairs": changed}),
                )

    async def GetPairStats(self, request: pb.GetPairStatsRequest, context: Context) -> pb.PairStats:
        return await asyncio.to_thread(self._stats, pair_filter(request.selector))

    def _stats(self, wanted: PairFilter) -> pb.PairStats:
        groups = self._store.pair_groups(wanted)
        stats = pb.PairStats(
            total=_row("", groups),
            by_source=_rows(groups, lambda group: group.source),
            by_submitter=_rows(groups, lambda group: group.submitter),
            by_origin=_rows(groups, lambda group: group.origin.value),
            new_since_last_run=self._store.count_pairs().new_since_last_run,
            pairs_per_day=self._quota.pairs_per_day,
            bytes_per_day=self._quota.bytes_per_day,
            max_pairs_stored=self._quota.pairs_stored,
        )
        if self._quota.is_on:
            for row in stats.by_submitter:
                if row.name in self._quota.exempt:
                    continue
                use = self._store.quota_use(row.name)
                stats.quotas.add(
                    submitter=use.submitter,
                    pairs_today=use.pairs_today,
                    bytes_today=use.bytes_today,
                    pairs_stored=use.pairs_stored,
                )
                stats.quota_resets_unix_s = use.resets_unix_s
        return stats


def pair_filter(selector: pb.PairSelector, status: PairStatus | None = None) -> PairFilter:
    """Raises InvalidInputError for an origin that is none."""
    return PairFilter(
        ids=tuple(selector.ids),
        status=status,
        source=selector.source,
        submitter=selector.submitter,
        origin=origin_of(selector.origin),
    )


def _change_message(change: Change) -> pb.ChangePairsResponse:
    response = pb.ChangePairsResponse(
        num_pairs=change.num_pairs,
        audit_id=change.audit_id,
        num_held_out=change.num_held_out,
    )
    for run in change.runs:
        response.runs.add(
            run_id=run.run_id,
            state=run.state,
            num_pairs=run.num_pairs,
            adapters=run.adapters,
            shard_path=run.shard_path,
            shard_exists=bool(run.shard_path) and Path(run.shard_path).exists(),
            through=run.through,
        )
    return response


def _rows(
    groups: Iterable[GroupCount], name: Callable[[GroupCount], str]
) -> list[pb.PairStats.Row]:
    by_name: dict[str, list[GroupCount]] = {}
    for group in groups:
        by_name.setdefault(name(group), []).append(group)
    rows = [_row(key, some) for key, some in by_name.items()]
    rows.sort(key=lambda row: (-(row.verified + row.unverified + row.quarantined), row.name))
    return rows[:MAX_ROWS]


def _row(name: str, groups: Iterable[GroupCount]) -> pb.PairStats.Row:
    row = pb.PairStats.Row(name=name)
    for group in groups:
        row.verified += group.verified
        row.unverified += group.unverified
        row.quarantined += group.quarantined
        row.purged += group.purged
        row.size_bytes += group.size_bytes
    return row
