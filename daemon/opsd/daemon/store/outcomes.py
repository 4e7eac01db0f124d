"""What became of attempts outside."""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, insert, select

from opsd.daemon.errors import ConflictError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, one
from opsd.daemon.types.problems import AttemptOutcome, AttemptOutcomeKind

_outcomes = tables.attempt_outcomes


class OutcomeArea(Area):
    """Implements ``OutcomeStore``."""

    def add_attempt_outcome(
        self,
        attempt_id: str,
        outcome: AttemptOutcomeKind,
        *,
        reporter: str,
        verified: bool,
        comment: str = "",
    ) -> tuple[AttemptOutcome, bool]:
        """The outcome that stands, and whether it is new; the adapter is that of the attempt.

        The first one stands: statistics that have followed it must not see it change. Raises
        NotFoundError (no such attempt) or ConflictError (it has the other outcome already).
        """

        def work(connection: Connection) -> tuple[AttemptOutcome, bool]:
            where = (_outcomes.c.attempt_id == attempt_id, _outcomes.c.verified == verified)
            row = one(connection, _outcomes, *where)
            if row is not None:
                stored = _outcome(row)
                if stored.outcome is not outcome:
                    raise ConflictError(
                        f"attempt {attempt_id} was {stored.outcome} already, by "
                        f"{stored.reporter!r}: an outcome that was stored stands"
                    )
                return stored, False
            attempt = one(connection, tables.attempts, tables.attempts.c.id == attempt_id)
            if attempt is None:
                raise NotFoundError(f"no attempt {attempt_id[:80]!r}")
            connection.execute(
                insert(_outcomes).values(
                    attempt_id=attempt_id,
                    adapter=attempt["adapter"],
                    outcome=outcome.value,
                    reporter=reporter,
                    verified=verified,
                    comment=comment,
                    created_unix_s=self._clock(),
                )
            )
            row = one(connection, _outcomes, *where)
            assert row is not None, "what was inserted is there"
            return _outcome(row), True

        return self._database.write(work)

    def attempt_outcomes_since(
        self, after_seq: int, *, limit: int = 1000, adapter: str = "", attempt_id: str = ""
    ) -> list[AttemptOutcome]:
        """Outcomes after ``after_seq``, oldest first. Whoever follows them asks again with the seq
        of the last one; there is one writer, so none appears before one that was seen."""
        query = select(_outcomes).where(_outcomes.c.seq > after_seq)
        if adapter:
            query = query.where(_outcomes.c.adapter == adapter)
        if attempt_id:
            query = query.where(_outcomes.c.attempt_id == attempt_id)
        query = query.order_by(_outcomes.c.seq).limit(limit)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_outcome(row) for row in rows]


def _outcome(row: RowMapping) -> AttemptOutcome:
    return AttemptOutcome(
        attempt_id=row["attempt_id"],
        adapter=row["adapter"],
        outcome=AttemptOutcomeKind(row["outcome"]),
        reporter=row["reporter"],
        verified=bool(row["verified"]),
        created_unix_s=row["created_unix_s"],
        comment=row["comment"],
        seq=row["seq"],
    )
