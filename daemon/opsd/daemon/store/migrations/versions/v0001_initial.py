"""The first schema.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _adapters()
    _attempts()
    _audit()
    _gate_outcomes()
    _gate_reports()
    _incumbent()
    _pairs()
    _pool_lease()
    _runs()
    _run_history()
    _snapshots()
    _snapshot_pairs()
    # The two single rows: nothing promoted yet, and a free pool.
    op.execute(
        "INSERT INTO incumbent (id, adapter, previous, epoch, canary, canary_share, changed_unix_s,"
        " actor, reason) VALUES (1, 'base', '', 0, '', 0.0, 0.0, '', '')"
    )
    op.execute(
        "INSERT INTO pool_lease (id, holder, acquired_unix_s, expires_unix_s)"
        " VALUES (1, '', 0.0, 0.0)"
    )


def _adapters() -> None:
    op.create_table(
        "adapters",
        sa.Column("lora_id", BigId, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("alpha", sa.Double(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("model_fingerprint", sa.String(length=128), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("lora_id", name=op.f("pk_adapters")),
        sa.UniqueConstraint("name", name=op.f("uq_adapters_name")),
        sa.UniqueConstraint("sha256", name=op.f("uq_adapters_sha256")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_adapters_run_id"), "adapters", ["run_id"], unique=False)


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("completion", sa.Text(), nullable=False),
        sa.Column("completion_tokens", sa.Integer(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.Column("rating", sa.String(length=16), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
    )


def _audit() -> None:
    op.create_table(
        "audit",
        sa.Column("id", BigId, autoincrement=True, nullable=False),
        sa.Column("time_unix_s", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
        sqlite_autoincrement=True,
    )


def _gate_outcomes() -> None:
    op.create_table(
        "gate_outcomes",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("suite", sa.String(length=64), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("solved", sa.Boolean(), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "run_id", "adapter", "suite", "item_id", name=op.f("pk_gate_outcomes")
        ),
    )


def _gate_reports() -> None:
    op.create_table(
        "gate_reports",
        sa.Column("seq", BigId, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("candidate", sa.String(length=64), nullable=False),
        sa.Column("verdict", sa.String(length=16), nullable=False),
        sa.Column("report_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_gate_reports")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_gate_reports_candidate"), "gate_reports", ["candidate"], unique=False)
    op.create_index(op.f("ix_gate_reports_run_id"), "gate_reports", ["run_id"], unique=False)


def _incumbent() -> None:
    op.create_table(
        "incumbent",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("canary", sa.String(length=64), nullable=False),
        sa.Column("canary_share", sa.Double(), nullable=False),
        sa.Column("changed_unix_s", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_incumbent")),
    )


def _pairs() -> None:
    op.create_table(
        "pairs",
        sa.Column("seq", BigId, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("content_sha256", sa.String(length=64), nullable=False),
        sa.Column("prompt_key", sa.String(length=64), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("solution", sa.Text(), nullable=False),
        sa.Column("verifier", sa.String(length=64), nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("stratum", sa.Text(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("verdict_kind", sa.String(length=16), nullable=False),
        sa.Column("verdict_verifier", sa.String(length=64), nullable=False),
        sa.Column("verdict_evidence", sa.Text(), nullable=False),
        sa.Column("verdict_duration_s", sa.Double(), nullable=False),
        sa.Column("submitter", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_pairs")),
        sa.UniqueConstraint("content_sha256", name=op.f("uq_pairs_content_sha256")),
        sa.UniqueConstraint("id", name=op.f("uq_pairs_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_pairs_prompt_key"), "pairs", ["prompt_key"], unique=False)
    op.create_index(op.f("ix_pairs_source"), "pairs", ["source"], unique=False)
    op.create_index(op.f("ix_pairs_status"), "pairs", ["status"], unique=False)


def _pool_lease() -> None:
    op.create_table(
        "pool_lease",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("acquired_unix_s", sa.Double(), nullable=False),
        sa.Column("expires_unix_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool_lease")),
    )


def _runs() -> None:
    op.create_table(
        "runs",
        sa.Column("seq", BigId, autoincrement=True, nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("trigger", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.Column("updated_unix_s", sa.Double(), nullable=False),
        sa.Column("overrides_json", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("spec_json", sa.Text(), nullable=False),
        sa.Column("run_dir", sa.Text(), nullable=False),
        sa.Column("num_pairs", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("num_steps", sa.Integer(), nullable=False),
        sa.Column("metrics_json", sa.Text(), nullable=False),
        sa.Column("generated_tokens", sa.BigInteger(), nullable=False),
        sa.Column("eval_done", sa.Integer(), nullable=False),
        sa.Column("eval_total", sa.Integer(), nullable=False),
        sa.Column("candidate", sa.String(length=64), nullable=False),
        sa.Column("incumbent_at_start", sa.String(length=64), nullable=False),
        sa.Column("launches", sa.Integer(), nullable=False),
        sa.Column("cancel_reason", sa.Text(), nullable=False),
        sa.Column("cancel_actor", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("log_tail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_runs")),
        sa.UniqueConstraint("id", name=op.f("uq_runs_id")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_runs_state"), "runs", ["state"], unique=False)
    op.create_index(
        "uq_runs_request_id",
        "runs",
        ["request_id"],
        unique=True,
        sqlite_where=sa.text("request_id <> ''"),
        postgresql_where=sa.text("request_id <> ''"),
    )


def _run_history() -> None:
    op.create_table(
        "run_history",
        sa.Column("seq", BigId, autoincrement=True, nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("state", sa.String(length=32), nullable=False),
        sa.Column("time_unix_s", sa.Double(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_history_run_id_runs")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_run_history")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_run_history_run_id"), "run_history", ["run_id"], unique=False)


def _snapshots() -> None:
    op.create_table(
        "snapshots",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("last_pair_seq", sa.BigInteger(), nullable=False),
        sa.Column("created_unix_s", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_snapshots_run_id_runs")),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_snapshots")),
    )


def _snapshot_pairs() -> None:
    op.create_table(
        "snapshot_pairs",
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("pair_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(
            ["pair_id"], ["pairs.id"], name=op.f("fk_snapshot_pairs_pair_id_pairs")
        ),
        sa.ForeignKeyConstraint(
            ["run_id"],
            ["snapshots.run_id"],
            name=op.f("fk_snapshot_pairs_run_id_snapshots"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("run_id", "pair_id", name=op.f("pk_snapshot_pairs")),
    )
    op.create_index(op.f("ix_snapshot_pairs_pair_id"), "snapshot_pairs", ["pair_id"], unique=False)
    # ### end Alembic commands ###
