"""Suites with versions and budgets; answers kept for later gates.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "suites",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("num_items", sa.Integer(), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("margin", sa.Double(), nullable=False),
        sa.Column("stratum_margin", sa.Double(), nullable=False),
        sa.Column("sealed", sa.Boolean(), nullable=False),
        sa.Column("budget", sa.Integer(), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("source", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.Column("retired_unix_s", sa.Double(), nullable=False),
        sa.Column("fresh_share", sa.Double(), nullable=False),
        sa.Column("queries_carried", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_suites")),
        sa.UniqueConstraint("name", "version", name="uq_suites_name_version"),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_suites_state"), "suites", ["state"], unique=False)
    op.create_table(
        "suite_prompts",
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("prompt_key", "name", "version", name=op.f("pk_suite_prompts")),
    )
    op.create_table(
        "suite_uses",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("time_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "version", "run_id", name=op.f("pk_suite_uses")),
    )
    op.create_table(
        "answer_cache",
        sa.Column("conditions", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=128), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("sample", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("solved", sa.Boolean(), nullable=True),
        sa.Column("record_json", sa.Text(), nullable=False),
        sa.Column("used_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint(
            "conditions", "adapter", "item_id", "sample", name=op.f("pk_answer_cache")
        ),
    )
    op.create_index(
        op.f("ix_answer_cache_used_unix_s"), "answer_cache", ["used_unix_s"], unique=False
    )
    # Outcomes of evaluations that were under way, kept by run; they are asked for again.
    op.drop_table("gate_outcomes")
