"""Changing stored pairs: quarantine, release, purge, retention, another verdict.

Every method does one small batch in one transaction and says where the next one goes on, so that
whoever adds pairs meanwhile never waits for long.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    delete,
    insert,
    select,
    text,
    update,
)

from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks, write_audit
from opsd.daemon.store.pair_counts import Ledger, count_matching, lock_pairs
from opsd.daemon.store.pair_rows import next_seqs, pair_of, stored_keys, where
from opsd.daemon.types.pair_sets import PairFilter, Sweep
from opsd.daemon.types.pairs import Pair, PairStatus, Verdict, VerdictKind

_pairs = tables.pairs
_held = tables.snapshot_pairs
_bands = tables.pair_bands

BATCH = 500
"""Pairs changed in one transaction."""

# Word for word as the index has it, or SQLite does not use it.
_WITHOUT_BANDS = text("NOT has_bands")

BandKeys = Callable[[str], tuple[int, ...]]
"""The band keys of a prompt, as they were when the pair was added."""


class PairChangeArea(Area):
    """The part of ``PairStore`` that changes what is stored."""

    def count_filtered(self, wanted: PairFilter) -> int:
        """How many pairs match."""

        def work(connection: Connection) -> int:
            if not wanted.ids:
                return count_matching(connection, wanted)
            found = 0
            for some in chunks(dict.fromkeys(wanted.ids)):
                query = select(_pairs.c.seq).where(*where(wanted), _pairs.c.id.in_(some))
                found += len(connection.execute(query).all())
            return found

        return self._database.read(work)

    def change_pairs(
        self, wanted: PairFilter, to: PairStatus, *, after_seq: int = 0, reason: str = ""
    ) -> Sweep:
        """Quarantines (QUARANTINED, with the reason) or releases (VERIFIED: to what its verdict
        says) the next pairs that match, from ``after_seq`` on."""
        assert to in (PairStatus.QUARANTINED, PairStatus.VERIFIED), "purging erases: purge_pairs"

        def work(connection: Connection, rows: Sequence[RowMapping]) -> int:
            ledger = Ledger(connection)
            by_status: dict[PairStatus, list[int]] = {}
            for row in rows:
                status = to if to is PairStatus.QUARANTINED else _status_by(row["verdict_kind"])
                if row["status"] != status.value:
                    ledger.move(row, status)
                    by_status.setdefault(status, []).append(row["seq"])
            for status, seqs in by_status.items():
                connection.execute(
                    update(_pairs)
                    .where(_pairs.c.seq.in_(seqs))
                    .values(status=status.value, quarantine_reason=reason)
                )
            ledger.post()
            return sum(len(seqs) for seqs in by_status.values())

        return self._on_next(wanted, after_seq, work, name="")

    def purge_pairs(
        self, wanted: PairFilter, *, after_seq: int = 0, band_keys: BandKeys | None = None
    ) -> Sweep:
        """Erases the texts of the next pairs that match: prompt, solution, reference, stratum,
        evidence. Id, digests, source and submitter stay, so that snapshots keep naming the pair and
        the same content is known when it comes again."""

        def work(connection: Connection, rows: Sequence[RowMapping]) -> int:
            _erase(connection, rows, band_keys)
            return len(rows)

        return self._on_next(wanted, after_seq, work, name="purge")

    def _on_next(
        self,
        wanted: PairFilter,
        after_seq: int,
        work: Callable[[Connection, Sequence[RowMapping]], int],
        *,
        name: str,
    ) -> Sweep:
        """Looks for the next batch without keeping writers out, then changes what still matches."""
        seqs = self._database.read(
            lambda connection: next_seqs(connection, wanted, after_seq, BATCH)
        )
        if not seqs:
            return Sweep(0, after_seq, True)

        def change(connection: Connection) -> int:
            lock_pairs(connection)
            return work(connection, _rows(connection, seqs, where(wanted)))

        return Sweep(self._database.write(change, name=name), seqs[-1], len(seqs) < BATCH)

    def expire_pairs(
        self,
        status: PairStatus,
        *,
        before_unix_s: float,
        after_seq: int = 0,
        erase_trained: bool = False,
        band_keys: BandKeys | None = None,
    ) -> Sweep:
        """Deletes the next pairs of that status stored before then. Those of a run's snapshot are
        left alone, or erased as ``purge_pairs`` does."""

        query = (
            select(_pairs.c.seq, _pairs.c.id, _pairs.c.created_unix_s)
            .where(_pairs.c.status == status.value, _pairs.c.seq > after_seq)
            .order_by(_pairs.c.seq)
            .limit(BATCH)
        )

        def look(connection: Connection) -> tuple[Sequence[Row[int, str, float]], list[int]]:
            rows = connection.execute(query).all()
            old = [row for row in rows if row.created_unix_s < before_unix_s]
            if old and not erase_trained:
                trained = _trained_ids(connection, [row.id for row in old])
                return rows, [row.seq for row in old if row.id not in trained]
            return rows, [row.seq for row in old]

        def work(connection: Connection) -> int:
            lock_pairs(connection)
            rows = _rows(connection, seqs, [_pairs.c.status == status.value])
            trained = _trained_ids(connection, [row["id"] for row in rows])
            gone = [row for row in rows if row["id"] not in trained]
            _delete(connection, gone, band_keys)
            erased = [row for row in rows if row["id"] in trained] if erase_trained else []
            _erase(connection, erased, band_keys)
            return len(gone) + len(erased)

        rows, seqs = self._database.read(look)
        removed = self._database.write(work) if seqs else 0
        # Pairs are stored in the order of their times, but for some that were verified at once: a
        # whole batch that is young is the end.
        young = all(row.created_unix_s >= before_unix_s for row in rows)
        last = rows[-1].seq if rows else after_seq
        return Sweep(removed, last, young or len(rows) < BATCH)

    def expire_attempts(self, *, before_unix_s: float) -> Sweep:
        """Deletes the oldest attempts, and the feedback on them, that were made before then."""
        attempts = tables.attempts

        def work(connection: Connection) -> Sweep:
            oldest = (
                select(attempts.c.id)
                .where(attempts.c.created_unix_s < before_unix_s)
                .order_by(attempts.c.created_unix_s)
                .limit(BATCH)
            )
            ids = list(connection.execute(oldest).scalars())
            connection.execute(delete(attempts).where(attempts.c.id.in_(ids)))
            return Sweep(len(ids), 0, len(ids) < BATCH)

        return self._database.write(work)

    def set_verdict(self, pair_id: str, verdict: Verdict) -> Pair | None:
        """The verdict of a verification done again, and the status that follows; a pair in
        quarantine stays there. None when it was purged or removed meanwhile."""

        def work(connection: Connection) -> Pair | None:
            lock_pairs(connection)
            row = _row(connection, pair_id)
            if row is None or row["status"] == PairStatus.PURGED.value:
                return None
            status = PairStatus(row["status"])
            if status is not PairStatus.QUARANTINED:
                status = _status_by(verdict.kind.value)
            ledger = Ledger(connection)
            ledger.move(row, status)
            connection.execute(
                update(_pairs)
                .where(_pairs.c.seq == row["seq"])
                .values(
                    status=status.value,
                    verdict_kind=verdict.kind.value,
                    verdict_verifier=verdict.verifier,
                    verdict_evidence=verdict.evidence,
                    verdict_duration_s=verdict.duration_s,
                )
            )
            ledger.post()
            changed = _row(connection, pair_id)
            assert changed is not None, "the row that was changed is there"
            return pair_of(changed)

        return self._database.write(work)

    def pairs_without_bands(self, limit: int) -> list[tuple[int, Pair]]:
        """(seq, pair) of the oldest that near-duplicates of would not be found."""
        query = (
            select(_pairs)
            .where(_WITHOUT_BANDS, _pairs.c.status != PairStatus.PURGED.value)
            .order_by(_pairs.c.seq)
            .limit(limit)
        )
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [(row["seq"], pair_of(row)) for row in rows]

    def set_bands(self, keys_by_id: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Makes near-duplicates of stored pairs findable; pairs that have bands are left alone."""

        def work(connection: Connection) -> None:
            lock_pairs(connection)
            keys = dict(keys_by_id)
            for some in chunks(keys):
                rows = connection.execute(
                    select(_pairs).where(
                        _pairs.c.id.in_(some),
                        ~_pairs.c.has_bands,
                        _pairs.c.status != PairStatus.PURGED.value,
                    )
                ).mappings()
                found = [(row["seq"], pair_of(row).input) for row in rows]
                bands = [
                    {"band_key": key, "pair_seq": seq}
                    for seq, given in found
                    for key in stored_keys(keys[given.id], given)
                ]
                if bands:
                    connection.execute(insert(_bands), bands)
                seqs = [seq for seq, _ in found]
                connection.execute(
                    update(_pairs).where(_pairs.c.seq.in_(seqs)).values(has_bands=True)
                )

        self._database.write(work)

    def audit_change(
        self, wanted: PairFilter, *, actor: str, action: str, reason: str, **detail: object
    ) -> int:
        """The audit entry of a change, written before its first batch."""
        return self._database.write(
            lambda connection: write_audit(
                connection,
                self._clock(),
                actor=actor,
                action=action,
                subject=str(wanted),
                reason=reason,
                detail_json=json.dumps(
                    {
                        "ids": list(wanted.ids[:1000]),
                        "submitter": wanted.submitter,
                        "source": wanted.source,
                        "origin": wanted.origin or "",
                    }
                    | detail
                ),
            )
        )


def _status_by(verdict_kind: str) -> PairStatus:
    passed = verdict_kind == VerdictKind.PASS.value
    return PairStatus.VERIFIED if passed else PairStatus.UNVERIFIED


def _row(connection: Connection, pair_id: str) -> RowMapping | None:
    return connection.execute(select(_pairs).where(_pairs.c.id == pair_id)).mappings().one_or_none()


def _rows(
    connection: Connection, seqs: Sequence[int], conditions: Sequence[ColumnElement[bool]]
) -> list[RowMapping]:
    query = select(_pairs).where(_pairs.c.seq.in_(seqs), *conditions).order_by(_pairs.c.seq)
    return list(connection.execute(query).mappings())


def _trained_ids(connection: Connection, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for some in chunks(ids):
        query = select(_held.c.pair_id).where(_held.c.pair_id.in_(some)).distinct()
        found.update(connection.execute(query).scalars())
    return found


def _erase(connection: Connection, rows: Sequence[RowMapping], keys: BandKeys | None) -> None:
    if not rows:
        return
    _drop_bands(connection, rows, keys)
    ledger = Ledger(connection)
    for row in rows:
        ledger.move(row, PairStatus.PURGED)
    connection.execute(
        update(_pairs)
        .where(_pairs.c.seq.in_([row["seq"] for row in rows]))
        .values(
            status=PairStatus.PURGED.value,
            prompt="",
            solution="",
            reference="",
            stratum="",
            verdict_evidence="",
            size_bytes=0,
        )
    )
    ledger.post()


def _delete(connection: Connection, rows: Sequence[RowMapping], keys: BandKeys | None) -> None:
    if not rows:
        return
    _drop_bands(connection, rows, keys)
    ledger = Ledger(connection)
    for row in rows:
        ledger.move(row, None)
    counts = tables.solve_counts
    connection.execute(delete(counts).where(counts.c.pair_id.in_([row["id"] for row in rows])))
    connection.execute(delete(_pairs).where(_pairs.c.seq.in_([row["seq"] for row in rows])))
    ledger.post()


def _drop_bands(
    connection: Connection, rows: Iterable[RowMapping], band_keys: BandKeys | None
) -> None:
    # The table is not indexed by pair; without the keys the rows stay, and lead nowhere.
    if band_keys is None:
        return
    for row in rows:
        if row["has_bands"]:
            keys = stored_keys(band_keys(row["prompt"]), pair_of(row).input)
            connection.execute(
                delete(_bands).where(_bands.c.band_key.in_(keys), _bands.c.pair_seq == row["seq"])
            )
