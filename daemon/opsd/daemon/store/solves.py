"""How often the student solved a problem, over all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection, delete, func, insert, select

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks
from opsd.daemon.store.runs import load_run

_counts = tables.solve_counts


class SolveArea(Area):
    """The part of ``RunStore`` about solve counts."""

    def record_solves(self, run_id: str, counts: Mapping[str, tuple[int, int]]) -> None:
        """Recorded again, the later counts stand."""
        pairs = tables.pairs

        def work(connection: Connection) -> None:
            load_run(connection, run_id, for_update=True)
            known: set[str] = set()
            for some in chunks(counts):
                known.update(connection.scalars(select(pairs.c.id).where(pairs.c.id.in_(some))))
            if unknown := sorted(counts.keys() - known):
                raise NotFoundError(
                    f"run {run_id} counts attempts at {len(unknown)} pairs that are not stored, "
                    f"e.g. {unknown[0]}"
                )
            connection.execute(delete(_counts).where(_counts.c.run_id == run_id))
            for some in chunks(counts):
                rows = [
                    {
                        "run_id": run_id,
                        "pair_id": pair_id,
                        "attempts": counts[pair_id][0],
                        "solved": counts[pair_id][1],
                    }
                    for pair_id in some
                ]
                connection.execute(insert(_counts), rows)

        self._database.write(work)

    def solve_counts(self, pair_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(attempts, solved) over all runs, for those of the pairs that were attempted."""

        def work(connection: Connection) -> dict[str, tuple[int, int]]:
            found: dict[str, tuple[int, int]] = {}
            for some in chunks(pair_ids):
                query = (
                    select(
                        _counts.c.pair_id,
                        func.sum(_counts.c.attempts),
                        func.sum(_counts.c.solved),
                    )
                    .where(_counts.c.pair_id.in_(some))
                    .group_by(_counts.c.pair_id)
                )
                for pair_id, attempts, solved in connection.execute(query):
                    found[pair_id] = (int(attempts), int(solved))
            return found

        return self._database.read(work)
