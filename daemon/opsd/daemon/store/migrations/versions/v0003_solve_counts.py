"""How often the student solved each problem of a run.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "solve_counts",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("pair_id", sa.String(length=36), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("solved", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pair_id"], ["pairs.id"], name=op.f("fk_solve_counts_pair_id_pairs")
        ),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_solve_counts_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "pair_id", name=op.f("pk_solve_counts")),
    )
    op.create_index(op.f("ix_solve_counts_pair_id"), "solve_counts", ["pair_id"], unique=False)
