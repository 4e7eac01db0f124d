"""How the model made its own pairs, and pairs in the order in which they came."""

from __future__ import annotations

from sqlalchemy import Connection, func, insert, select

from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, one
from opsd.daemon.store.pair_rows import pair_of
from opsd.daemon.types.pairs import Origin, Pair, PairStatus
from opsd.daemon.types.problems import Provenance, StoredPair

_pairs = tables.pairs
_provenance = tables.pair_provenance


class ProvenanceArea(Area):
    """Implements ``ProvenanceStore``."""

    def add_provenance(self, provenance: Provenance) -> None:
        """Written again for the same pair, the first one stands."""

        def work(connection: Connection) -> None:
            if one(connection, _provenance, _provenance.c.pair_id == provenance.pair_id) is None:
                connection.execute(
                    insert(_provenance).values(
                        pair_id=provenance.pair_id,
                        origin=provenance.origin.value,
                        problem_id=provenance.problem_id,
                        adapter=provenance.adapter,
                        detail_json=provenance.detail_json,
                        created_unix_s=provenance.created_unix_s,
                    )
                )

        self._database.write(work)

    def count_provenance(self, origin: Origin, *, since_unix_s: float) -> int:
        """Pairs of this origin made since then."""
        query = (
            select(func.count())
            .select_from(_provenance)
            .where(
                _provenance.c.origin == origin.value, _provenance.c.created_unix_s >= since_unix_s
            )
        )
        return self._database.read(lambda connection: connection.execute(query).scalar_one())

    def pairs_after(
        self,
        seq: int,
        *,
        limit: int,
        status: PairStatus | None = None,
        source: str = "",
        since_unix_s: float = 0.0,
    ) -> list[StoredPair]:
        """Pairs stored after ``seq``, oldest first."""
        joined = _pairs.outerjoin(_provenance, _provenance.c.pair_id == _pairs.c.id)
        query = select(_pairs, _provenance.c.detail_json).select_from(joined)
        query = query.where(_pairs.c.seq > seq)
        if status is not None:
            query = query.where(_pairs.c.status == status.value)
        if source:
            query = query.where(_pairs.c.source == source)
        if since_unix_s:
            query = query.where(_pairs.c.created_unix_s >= since_unix_s)
        query = query.order_by(_pairs.c.seq).limit(limit)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [StoredPair(row["seq"], pair_of(row), row["detail_json"] or "") for row in rows]

    def pair_to_vary(self, place: float) -> Pair | None:
        """A verified pair whose problem a person posed: the first one from ``place`` (in [0, 1)) of
        the table on, around its end; None when there is none."""
        posed_by_model = (
            select(_provenance.c.pair_id)
            .where(
                _provenance.c.pair_id == _pairs.c.id,
                _provenance.c.origin == Origin.SELF_PLAY.value,
            )
            .exists()
        )
        query = (
            select(_pairs)
            .where(_pairs.c.status == PairStatus.VERIFIED.value, ~posed_by_model)
            .order_by(_pairs.c.seq)
            .limit(1)
        )

        def work(connection: Connection) -> Pair | None:
            last = connection.execute(select(func.coalesce(func.max(_pairs.c.seq), 0))).scalar_one()
            start = int(place * last)
            for where in (_pairs.c.seq > start, _pairs.c.seq <= start):
                row = connection.execute(query.where(where)).mappings().one_or_none()
                if row is not None:
                    return pair_of(row)
            return None

        return self._database.read(work)
