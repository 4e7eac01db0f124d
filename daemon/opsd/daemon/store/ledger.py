"""How often held-out items were used to decide, and what was decided from."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence

from sqlalchemy import Connection, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from opsd.daemon.errors import DamagedError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks, one
from opsd.daemon.types.gate import SuiteRole, SuiteUse, SuiteUsed

_inputs = tables.gate_inputs
_uses = tables.gate_uses
_items = tables.gate_item_uses


class LedgerArea(Area):
    """Implements ``LedgerStore``."""

    def claim_suite_uses(
        self, run_id: str, suites: Sequence[SuiteUse], *, alpha: float
    ) -> dict[str, int]:
        def work(connection: Connection) -> dict[str, int]:
            claimed = {
                row.suite: row.gate_number - 1
                for row in connection.execute(select(_uses).where(_uses.c.run_id == run_id))
            }
            new = [suite for suite in suites if suite.name not in claimed]
            # All are looked up before any is counted: two suites of one gate are one use each.
            before = {suite.name: _most_used(connection, suite) for suite in new}
            for suite in new:
                connection.execute(
                    insert(_uses).values(
                        run_id=run_id,
                        suite=suite.name,
                        suite_sha256=suite.sha256,
                        role=suite.role.value,
                        gate_number=before[suite.name] + 1,
                        alpha=alpha,
                        time_unix_s=self._clock(),
                    )
                )
                _count(connection, suite)
            return {suite.name: (claimed | before)[suite.name] for suite in suites}

        return self._database.write(work)

    def num_suite_uses(self, prompt_keys: Sequence[str]) -> int:
        return self._database.read(lambda connection: _largest(connection, prompt_keys))

    def list_suite_uses(self) -> list[SuiteUsed]:
        query = select(_uses).order_by(_uses.c.time_unix_s, _uses.c.suite)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [SuiteUsed(**{**row, "role": SuiteRole(row["role"])}) for row in rows]

    def save_gate_inputs(self, run_id: str, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()

        def work(connection: Connection) -> None:
            if one(connection, _inputs, _inputs.c.sha256 == sha256) is None:
                connection.execute(
                    insert(_inputs).values(
                        sha256=sha256,
                        run_id=run_id,
                        data=zlib.compress(data, 6),
                        created_unix_s=self._clock(),
                    )
                )

        self._database.write(work)
        return sha256

    def get_gate_inputs(self, sha256: str) -> bytes:
        def work(connection: Connection) -> bytes:
            row = one(connection, _inputs, _inputs.c.sha256 == sha256)
            if row is None:
                raise NotFoundError(
                    f"no gate inputs {sha256[:80]!r}: the report is older than they are kept"
                )
            try:
                return zlib.decompress(row["data"])
            except zlib.error as error:
                raise DamagedError(
                    f"the stored gate inputs {sha256} are damaged: {error}"
                ) from error

        return self._database.read(work)


def _most_used(connection: Connection, suite: SuiteUse) -> int:
    return _largest(connection, suite.prompt_keys)


def _largest(connection: Connection, prompt_keys: Sequence[str]) -> int:
    largest = 0
    for some in chunks(prompt_keys):
        query = select(func.max(_items.c.uses)).where(_items.c.prompt_key.in_(some))
        largest = max(largest, connection.execute(query).scalar() or 0)
    return largest


def _count(connection: Connection, suite: SuiteUse) -> None:
    rows = [{"prompt_key": key, "uses": 1} for key in sorted(set(suite.prompt_keys))]
    dialect = {"sqlite": sqlite, "postgresql": postgresql}[connection.dialect.name]
    statement = dialect.insert(_items)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[_items.c.prompt_key], set_={"uses": _items.c.uses + 1}
        ),
        rows,
    )
