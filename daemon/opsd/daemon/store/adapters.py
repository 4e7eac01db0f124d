"""Adapters, and the one row that says which of them serves."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, or_, select
from sqlalchemy.exc import IntegrityError

from opsd.daemon.errors import ConflictError, InvalidInputError, StateError
from opsd.daemon.store import serving, tables
from opsd.daemon.store.api import Change
from opsd.daemon.store.area import Area, write_audit
from opsd.daemon.store.serving import Why, adapter_of, current, require_why, resolve, set_state
from opsd.daemon.types.adapters import Adapter, AdapterState, Incumbent
from opsd.daemon.types.gate import GateReport

_adapters = tables.adapters


class AdapterArea(Area):
    """Implements ``AdapterStore``."""

    def add_adapter(self, adapter: Adapter) -> Adapter:
        def work(connection: Connection) -> Adapter:
            stored = _stored(connection, adapter)
            if stored is not None:
                return stored
            values = asdict(adapter) | {"state": AdapterState.CANDIDATE.value}
            del values["lora_id"]
            try:
                with connection.begin_nested():
                    connection.execute(insert(_adapters).values(**values))
            except IntegrityError:
                stored = _stored(connection, adapter)
                if stored is None:
                    raise
                return stored
            return resolve(connection, adapter.name)

        return self._database.write(work)

    def get_adapter(self, name: str) -> Adapter:
        return self._database.read(lambda connection: resolve(connection, name))

    def list_adapters(self) -> list[Adapter]:
        """Newest first."""
        query = select(_adapters).order_by(_adapters.c.lora_id.desc())
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [adapter_of(row) for row in rows]

    def get_incumbent(self) -> Incumbent:
        return self._database.read(current)

    def start_canary(
        self,
        name: str,
        *,
        share: float,
        expected_epoch: int,
        actor: str,
        reason: str,
        plan_json: str = "{}",
    ) -> Change:
        if not 0.0 <= share < 1.0:
            raise InvalidInputError(f"a canary's share is at least 0 and below 1, not {share}")

        def work(connection: Connection) -> Change:
            return serving.start_canary(
                connection,
                name,
                share=share,
                epoch=expected_epoch,
                plan_json=plan_json,
                why=Why(actor, reason, self._clock()),
            )

        return self._database.write(work, name="canary")

    def advance_canary(
        self,
        name: str,
        *,
        step: int,
        share: float,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        def work(connection: Connection) -> Change:
            why = Why(actor, reason, self._clock(), detail or {})
            return serving.advance_canary(
                connection, name, step=step, share=share, epoch=expected_epoch, why=why
            )

        return self._database.write(work, name="canary-advance")

    def promote(
        self,
        name: str,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        def work(connection: Connection) -> Change:
            why = Why(actor, reason, self._clock(), detail or {})
            return serving.promote(connection, name, epoch=expected_epoch, why=why)

        return self._database.write(work, name="promote")

    def rollback(
        self,
        *,
        expected_epoch: int,
        actor: str,
        reason: str,
        detail: Mapping[str, object] | None = None,
    ) -> Change:
        def work(connection: Connection) -> Change:
            why = Why(actor, reason, self._clock(), detail or {})
            return serving.rollback(connection, epoch=expected_epoch, why=why)

        return self._database.write(work, name="rollback")

    def allot_lora_id(self) -> int:
        placeholder = f"allotted-{uuid.uuid4().hex}"

        def work(connection: Connection) -> int:
            # The sequence does not go back when the row goes.
            key = connection.execute(
                insert(_adapters).values(
                    name=placeholder,
                    sha256=placeholder,
                    state=AdapterState.REJECTED.value,
                    run_id="",
                    path="",
                    rank=0,
                    alpha=0.0,
                    size_bytes=0,
                    model_fingerprint="",
                    created_unix_s=self._clock(),
                )
            ).inserted_primary_key
            assert key is not None, "an inserted row has a key"
            connection.execute(delete(_adapters).where(_adapters.c.name == placeholder))
            return int(key[0])

        return self._database.write(work)

    def reject(
        self, name: str, *, actor: str, reason: str, report: GateReport | None = None
    ) -> Change:
        require_why(actor, reason)

        def work(connection: Connection) -> Change:
            return serving.reject(connection, name, Why(actor, reason, self._clock()), report)

        return self._database.write(work, name="reject")

    def set_adapter_state(self, name: str, state: AdapterState) -> None:
        """For the states that no routing depends on; the others change with the incumbent row."""
        if state in (AdapterState.INCUMBENT, AdapterState.PREVIOUS, AdapterState.CANARY):
            raise StateError(f"{name} becomes {state} by a promotion, rollback or canary only")

        def work(connection: Connection) -> None:
            row = current(connection, for_update=True)
            adapter = resolve(connection, name)
            if adapter.name in (row.adapter, row.previous, row.canary):
                raise StateError(f"{adapter.name} is {adapter.state}: what serves depends on it")
            if adapter.state is state:
                return
            set_state(connection, adapter.name, state)
            write_audit(
                connection,
                self._clock(),
                actor="opsd",
                action="adapter.state",
                subject=adapter.name,
                reason=f"{adapter.state} became {state}",
            )

        self._database.write(work)


def _stored(connection: Connection, adapter: Adapter) -> Adapter | None:
    query = select(_adapters).where(
        or_(_adapters.c.name == adapter.name, _adapters.c.sha256 == adapter.sha256)
    )
    rows = [adapter_of(row) for row in connection.execute(query).mappings()]
    for row in rows:
        if (row.name, row.sha256) != (adapter.name, adapter.sha256):
            raise ConflictError(
                f"adapter {adapter.name} with digest {adapter.sha256} collides with the stored "
                f"{row.name} with digest {row.sha256}: a name stands for one content only"
            )
    return rows[0] if rows else None
