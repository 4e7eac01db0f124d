"""The audit log: who changed what, when and why. Lines are only ever added."""

from __future__ import annotations

from sqlalchemy import RowMapping

from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, page, write_audit
from opsd.daemon.types.adapters import AuditEntry


class AuditArea(Area):
    """Implements ``AuditStore``."""

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
            lambda connection: page(
                connection, tables.audit, "id", _entry, limit=limit, token=token
            )
        )


def _entry(row: RowMapping) -> AuditEntry:
    return AuditEntry(
        id=row["id"],
        time_unix_s=row["time_unix_s"],
        actor=row["actor"],
        action=row["action"],
        subject=row["subject"],
        reason=row["reason"],
        detail_json=row["detail_json"],
    )
