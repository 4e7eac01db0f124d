"""Pairs by the million: origins, counts, groups, bands, quotas, an order to draw in.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
COUNTS = ("num_verified", "num_unverified", "num_quarantined", "num_purged")


def upgrade() -> None:
    _pair_columns()
    _new_tables()
    _fill()
    op.drop_index("ix_pairs_status", table_name="pairs")
    op.drop_index("ix_pairs_source", table_name="pairs")
    op.create_index("ix_pairs_status_seq", "pairs", ["status", "seq"])
    op.create_index("ix_pairs_source_seq", "pairs", ["source", "seq"])
    op.create_index("ix_pairs_submitter_seq", "pairs", ["submitter", "seq"])
    op.create_index("ix_pairs_draw", "pairs", ["group_id", "status", "sample_key"])
    op.create_index(
        "ix_pairs_without_bands",
        "pairs",
        ["seq"],
        sqlite_where=sa.text("NOT has_bands"),
        postgresql_where=sa.text("NOT has_bands"),
    )
    op.create_index("ix_attempts_created_unix_s", "attempts", ["created_unix_s"])


def _pair_columns() -> None:
    for column in (
        sa.Column("origin", sa.String(length=32), nullable=False, server_default="submitted"),
        sa.Column("quarantine_reason", sa.Text(), nullable=False, server_default=""),
        sa.Column("sample_key", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("group_id", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("has_bands", sa.Boolean(), nullable=False, server_default=sa.false()),
    ):
        op.add_column("pairs", column)


def _new_tables() -> None:
    op.create_table(
        "pair_counts",
        sa.Column("id", sa.Integer(), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.Column("num_new", sa.BigInteger(), nullable=False),
        sa.Column("snapshot_seq", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_pair_counts_single")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pair_counts")),
    )
    op.create_table(
        "pair_groups",
        sa.Column("id", BigId, autoincrement=True, nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("origin", sa.String(length=32), nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in COUNTS),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pair_groups")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_pair_groups_submitter"), "pair_groups", ["submitter"])
    op.create_index(
        "uq_pair_groups_names", "pair_groups", ["source", "submitter", "origin"], unique=True
    )
    op.create_table(
        "pair_bands",
        sa.Column("band_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("pair_seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("band_key", "pair_seq", name=op.f("pk_pair_bands")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "quota_use",
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("num_pairs", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("submitter", "day", name=op.f("pk_quota_use")),
    )


def _fill() -> None:
    """What the pairs that are there already would have got."""
    if op.get_bind().dialect.name == "sqlite":
        # The mask clears the sign; abs() has no answer for the smallest integer.
        random_key, size = "random() & 9223372036854775807", "length(CAST({} AS BLOB))"
    else:
        random_key, size = "floor(random() * 9223372036854774784)::bigint", "octet_length({})"
    size_bytes = " + ".join(size.format(name) for name in ("prompt", "solution", "reference"))
    op.execute(f"UPDATE pairs SET sample_key = {random_key}, size_bytes = {size_bytes}")
    counted = ", ".join(
        f"sum(CASE WHEN status = '{name.removeprefix('num_')}' THEN 1 ELSE 0 END)"
        for name in COUNTS
    )
    op.execute(
        f"INSERT INTO pair_groups (source, submitter, origin, {', '.join(COUNTS)}, size_bytes)"
        f" SELECT source, submitter, origin, {counted}, sum(size_bytes)"
        " FROM pairs GROUP BY source, submitter, origin"
    )
    op.execute(
        "UPDATE pairs SET group_id = (SELECT g.id FROM pair_groups g WHERE"
        " g.source = pairs.source AND g.submitter = pairs.submitter AND g.origin = pairs.origin)"
    )
    newest = "(SELECT coalesce(max(last_pair_seq), 0) FROM snapshots)"
    sums = ", ".join(f"coalesce(sum({name}), 0)" for name in COUNTS)
    op.execute(
        f"INSERT INTO pair_counts (id, {', '.join(COUNTS)}, num_new, snapshot_seq)"
        f" SELECT 1, {sums}, (SELECT count(*) FROM pairs WHERE status = 'verified'"
        f" AND seq > {newest}), {newest} FROM pair_groups"
    )
