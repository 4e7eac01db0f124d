"""Runs on another run's data, runs that only measure, learning curves, teacher checks.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # Defaults of the server's: rows that are there already need a value.
    op.add_column(
        "runs",
        sa.Column("same_data_as", sa.String(length=36), nullable=False, server_default=""),
    )
    op.add_column(
        "runs",
        sa.Column("measure_only", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column(
        "runs", sa.Column("teacher_check_json", sa.Text(), nullable=False, server_default="")
    )
    op.create_table(
        "curve_points",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("suite", sa.String(length=64), nullable=False),
        sa.Column("generated_tokens", sa.BigInteger(), nullable=False),
        sa.Column("train_s", sa.Double(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=False),
        sa.Column("tokens_mean", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_curve_points_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", "step", "suite", name=op.f("pk_curve_points")),
    )
