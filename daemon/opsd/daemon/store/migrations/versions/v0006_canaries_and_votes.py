"""Canaries with steps and statistics, and people's votes.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attempts", sa.Column("canary_share", sa.Double(), nullable=True))
    op.add_column(
        "attempts", sa.Column("caller", sa.String(length=32), nullable=False, server_default="")
    )
    _create_canaries()
    _create_votes()
    # A canary under way goes on by the plan that is configured when the daemon starts.
    op.execute(
        "INSERT INTO canaries (adapter, salt, plan_json, step, started_unix_s,"
        ' step_started_unix_s, statistics_json, "end", ended_unix_s, reason)'
        " SELECT canary, '', '{}', 0, changed_unix_s, changed_unix_s, '{}', 'running', 0, ''"
        " FROM incumbent WHERE canary <> ''"
    )


def _create_canaries() -> None:
    big_id = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.create_table(
        "canaries",
        sa.Column("id", big_id, autoincrement=True, nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("salt", sa.String(length=32), nullable=False),
        sa.Column("plan_json", sa.Text(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("started_unix_s", sa.Double(), nullable=False),
        sa.Column("step_started_unix_s", sa.Double(), nullable=False),
        sa.Column("statistics_json", sa.Text(), nullable=False),
        sa.Column("end", sa.String(length=16), nullable=False),
        sa.Column("ended_unix_s", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_canaries")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_canaries_adapter"), "canaries", ["adapter"], unique=False)
    op.create_table(
        "canary_callers",
        sa.Column("canary_id", big_id, nullable=False),
        sa.Column("stream", sa.String(length=16), nullable=False),
        sa.Column("caller", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["canary_id"], ["canaries.id"], name=op.f("fk_canary_callers_canary_id_canaries")
        ),
        sa.PrimaryKeyConstraint("canary_id", "stream", "caller", name=op.f("pk_canary_callers")),
    )


def _create_votes() -> None:
    op.create_table(
        "votes",
        sa.Column(
            "seq",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("ballot", sa.Integer(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("actor_key", sa.Text(), nullable=False),
        sa.Column("decision", sa.String(length=16), nullable=False),
        sa.Column("override", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("time_unix_s", sa.Double(), nullable=False),
        sa.Column("deciding", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_votes")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_votes_adapter"), "votes", ["adapter"], unique=False)
    op.create_index("uq_votes_adapter", "votes", ["adapter", "ballot", "actor_key"], unique=True)
