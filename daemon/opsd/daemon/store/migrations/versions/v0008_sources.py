"""Problems for the model to attempt, outcomes of attempts, how the model made its own pairs.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# SQLite grows a key by itself only when the column is exactly INTEGER.
_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _problems()
    _attempt_outcomes()
    _pair_provenance()


def _problems() -> None:
    op.create_table(
        "problems",
        sa.Column("seq", _KEY, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("verifier", sa.String(length=64), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("stratum", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("origin", sa.String(length=32), nullable=False),
        sa.Column("parent_id", sa.String(length=36), nullable=False),
        sa.Column("answerable", sa.String(length=16), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("solves", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("next_try_unix_s", sa.Double(), nullable=False),
        sa.Column("pair_id", sa.String(length=36), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.Column("updated_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_problems")),
        sa.UniqueConstraint("id", name=op.f("uq_problems_id")),
        sa.UniqueConstraint("content_sha256", name=op.f("uq_problems_content_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_problems_prompt_key"), "problems", ["prompt_key"], unique=False)
    op.create_index(op.f("ix_problems_source"), "problems", ["source"], unique=False)
    op.create_index(
        "ix_problems_queue", "problems", ["answerable", "state", "priority", "seq"], unique=False
    )


def _attempt_outcomes() -> None:
    op.create_table(
        "attempt_outcomes",
        sa.Column("seq", _KEY, autoincrement=True, nullable=False),
        sa.Column("attempt_id", sa.String(length=64), nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("reporter", sa.Text(), nullable=False),
        sa.Column("verified", sa.Boolean(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_attempt_outcomes")),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "uq_attempt_outcomes_attempt_id",
        "attempt_outcomes",
        ["attempt_id", "verified"],
        unique=True,
    )
    op.create_index(
        "ix_attempt_outcomes_adapter", "attempt_outcomes", ["adapter", "seq"], unique=False
    )


def _pair_provenance() -> None:
    op.create_table(
        "pair_provenance",
        sa.Column("pair_id", sa.String(length=36), nullable=False),
        sa.Column("origin", sa.String(length=32), nullable=False),
        sa.Column("problem_id", sa.String(length=36), nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("detail_json", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("pair_id", name=op.f("pk_pair_provenance")),
    )
    op.create_index(
        "ix_pair_provenance_origin",
        "pair_provenance",
        ["origin", "created_unix_s"],
        unique=False,
    )
