"""The audit log becomes a hash chain that the database lets nobody change.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

import time
from dataclasses import replace

import sqlalchemy as sa
from alembic import op

from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import CHAINED, GENESIS, Head, canonical_json, entry_sha256

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_BATCH = 1000
_REFUSAL = "the audit log is only ever added to"


def upgrade() -> None:
    # A default of the server's: rows that are there already need a value.
    for name in ("prev_sha256", "entry_sha256"):
        op.add_column(
            "audit",
            sa.Column(name, sa.String(length=64), nullable=False, server_default=""),
        )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("entry_id", sa.BigInteger(), nullable=False),
        sa.Column("entry_sha256", sa.String(length=64), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_audit_head_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    head = _chain(op.get_bind())
    op.execute(
        "INSERT INTO audit_head (id, entry_id, entry_sha256)"
        f" VALUES (1, {head.id}, '{head.sha256}')"
    )
    op.create_index("uq_audit_prev_sha256", "audit", ["prev_sha256"], unique=True)
    _guard()


def _chain(connection: sa.Connection) -> Head:
    """Links the entries of before; one more says how many they are, since their ids may skip."""
    columns = ("id", "time_unix_s", "actor", "action", "subject", "reason", "detail_json")
    audit = sa.table("audit", *(sa.column(name) for name in (*columns, *_HASHES)))
    head, number = Head(0, GENESIS), 0
    while True:
        rows = connection.execute(
            sa.select(*(audit.c[name] for name in columns))
            .where(audit.c.id > head.id)
            .order_by(audit.c.id)
            .limit(_BATCH)
        ).mappings()
        before = number
        for row in rows.all():
            entry = _linked(AuditEntry(**row), head)
            connection.execute(
                sa.update(audit)
                .where(audit.c.id == entry.id)
                .values(prev_sha256=entry.prev_sha256, entry_sha256=entry.entry_sha256)
            )
            head, number = Head(entry.id, entry.entry_sha256), number + 1
        if number == before:
            break
    if not number:
        return head
    reason = "entries written before there were hashes were chained as they were found"
    detail = canonical_json({"entries": number})
    last = AuditEntry(head.id + 1, time.time(), "opsd", CHAINED, "audit", reason, detail)
    last = _linked(last, head)
    values = {name: getattr(last, name) for name in (*columns, *_HASHES)}
    connection.execute(sa.insert(audit).values(**values))
    return Head(last.id, last.entry_sha256)


_HASHES = ("prev_sha256", "entry_sha256")


def _linked(entry: AuditEntry, head: Head) -> AuditEntry:
    entry = replace(entry, prev_sha256=head.sha256)
    return replace(entry, entry_sha256=entry_sha256(entry))


def _guard() -> None:
    """Refuses every change of an entry; whoever owns the database can take this away again."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit"
            " FOR EACH ROW EXECUTE FUNCTION audit_refuse_change()"
        )
        op.execute(
            "CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit"
            " FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse_change()"
        )
        return
    for verb in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER audit_no_{verb.lower()} BEFORE {verb} ON audit"
            f" BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
    # INSERT OR REPLACE deletes without telling the trigger above.
    op.execute(
        "CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit"
        " WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id OR prev_sha256 = NEW.prev_sha256)"
        f" BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )
