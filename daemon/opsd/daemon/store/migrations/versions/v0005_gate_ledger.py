"""What gates were decided from, and how often each held-out item was used.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "gate_inputs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_gate_inputs")),
    )
    op.create_index(op.f("ix_gate_inputs_run_id"), "gate_inputs", ["run_id"], unique=False)
    op.create_table(
        "gate_uses",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("suite", sa.String(length=64), nullable=False),
        sa.Column("suite_sha256", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("gate_number", sa.Integer(), nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("time_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("run_id", "suite", name=op.f("pk_gate_uses")),
    )
    op.create_table(
        "gate_item_uses",
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("prompt_key", name=op.f("pk_gate_item_uses")),
    )
