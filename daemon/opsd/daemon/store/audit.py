"""The audit log: who changed what, when and why. Lines are only ever added."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, RowMapping, select

from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, page, write_audit
from opsd.daemon.store.decisions import Promotion, Witness, surroundings
from opsd.daemon.types.adapters import Adapter, AuditEntry
from opsd.daemon.types.audit import AuditFacts, Head

_audit = tables.audit
_head = tables.audit_head

PROMOTING = ("adapter.promote", "adapter.canary")
"""Actions that let an adapter serve: each has a manifest."""
_BATCH = 1000


class AuditArea(Area):
    """Implements ``AuditStore``."""

    def describe_daemon(self, facts: AuditFacts) -> None:
        """What every entry from now on says about the daemon that writes it."""
        self._database.surroundings.facts = facts

    def set_witness(self, witness: Witness) -> None:
        """Who signs promotions from now on."""
        self._database.surroundings.witness = witness

    def add_audit(
        self, *, actor: str, action: str, subject: str, reason: str, detail_json: str = "{}"
    ) -> int:
        return self._database.write(
            lambda connection: write_audit(
                connection,
                self._clock(),
                actor=actor,
                action=action,
                subject=subject,
                reason=reason,
                detail_json=detail_json,
            )
        )

    def list_audit(self, *, limit: int, token: str = "") -> Page[AuditEntry]:
        return self._database.read(
            lambda connection: page(connection, _audit, "id", entry_of, limit=limit, token=token)
        )

    def audit_entries(self, *, after_id: int = 0) -> Iterator[list[AuditEntry]]:
        """All entries after one, oldest first, in batches; one transaction a batch."""
        while batch := self._batch_after(after_id):
            yield batch
            after_id = batch[-1].id

    def audit_entry(self, entry_id: int) -> AuditEntry | None:
        return self._database.read(lambda connection: read_entry(connection, entry_id))

    def audit_head(self) -> Head:
        """The log's end, as the row says that the next entry follows."""
        row = self._database.read(
            lambda connection: connection.execute(select(_head)).mappings().one()
        )
        return Head(row["entry_id"], row["entry_sha256"])

    def promoting_entry(self, adapter: str) -> AuditEntry | None:
        """The newest entry that let the adapter serve; None when it never did."""
        query = (
            select(_audit)
            .where(_audit.c.subject == adapter, _audit.c.action.in_(PROMOTING))
            .order_by(_audit.c.id.desc())
            .limit(1)
        )
        row = self._database.read(
            lambda connection: connection.execute(query).mappings().one_or_none()
        )
        return None if row is None else entry_of(row)

    def _batch_after(self, after_id: int) -> list[AuditEntry]:
        query = select(_audit).where(_audit.c.id > after_id).order_by(_audit.c.id).limit(_BATCH)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [entry_of(row) for row in rows]


def attest(connection: Connection, audit_id: int, adapter: Adapter | None) -> None:
    """Has the promotion signed that the entry speaks of, where somebody signs."""
    witness = surroundings(connection).witness
    entry = read_entry(connection, audit_id)
    if witness is None or adapter is None or entry is None or entry.action not in PROMOTING:
        return
    witness.attest(Promotion(adapter, entry, _canary_entry(connection, entry)))


def _canary_entry(connection: Connection, entry: AuditEntry) -> AuditEntry | None:
    """The one that began the adapter's canary phase, when the entry is the next one of its kind."""
    query = (
        select(_audit)
        .where(
            _audit.c.subject == entry.subject,
            _audit.c.action.in_((*PROMOTING, "adapter.withdraw_canary")),
            _audit.c.id < entry.id,
        )
        .order_by(_audit.c.id.desc())
        .limit(1)
    )
    row = connection.execute(query).mappings().one_or_none()
    return entry_of(row) if row is not None and row["action"] == "adapter.canary" else None


def read_entry(connection: Connection, entry_id: int) -> AuditEntry | None:
    row = connection.execute(select(_audit).where(_audit.c.id == entry_id)).mappings().one_or_none()
    return None if row is None else entry_of(row)


def entry_of(row: RowMapping) -> AuditEntry:
    return AuditEntry(**row)
