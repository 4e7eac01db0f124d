"""Verifying stored pairs again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from opsd.daemon.collect.intake import Verifying
from opsd.daemon.collect.ports import CurationStore
from opsd.daemon.errors import InvalidInputError
from opsd.daemon.types.pair_sets import PairFilter
from opsd.daemon.types.pairs import Pair, PairStatus, VerdictKind

SCAN_BATCH = 200


async def reverify(
    store: CurationStore, verifier: Verifying, wanted: PairFilter, *, failed_too: bool
) -> AsyncIterator[Pair]:
    """Each pair that matches and was verified again, as it is stored now, oldest first.

    Of unverified pairs those whose verdict was ``error`` (the verifier could not tell), and with
    ``failed_too`` also those that failed; of verified ones all: one that fails now is not trained
    on any more. Raises InvalidInputError for another status.
    """
    if wanted.status not in (PairStatus.UNVERIFIED, PairStatus.VERIFIED):
        raise InvalidInputError("status: only unverified and verified pairs are verified again")
    kinds = {VerdictKind.ERROR}
    if failed_too or wanted.status is PairStatus.VERIFIED:
        kinds |= set(VerdictKind)
    after_seq = 0
    while True:
        batch = await asyncio.to_thread(
            store.filtered_pairs, wanted, after_seq=after_seq, limit=SCAN_BATCH
        )
        if not batch:
            return
        after_seq = batch[-1][0]
        for pair in [pair for _, pair in batch if pair.verdict.kind in kinds]:
            given = pair.input
            verdict = await verifier.verify(given.verifier, given.reference, given.solution)
            changed = await asyncio.to_thread(store.set_verdict, given.id, verdict)
            if changed is not None:
                yield changed
