"""The schema, as the code of today sees it; ``migrations`` is how a database gets there.

Times are seconds since the epoch. ``seq`` columns grow with every row and are never reused:
listings are ordered and paged by them.
"""

from __future__ import annotations

import re

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

BigId = BigInteger().with_variant(Integer(), "sqlite")
"""SQLite grows a key by itself only when the column is exactly INTEGER."""


_NOT_STORABLE = re.compile("[\x00\ud800-\udfff]")


class LooseText(TypeDecorator[str]):
    """Text from outside that must be kept whatever it holds: model output, logs, people's reasons.

    PostgreSQL cannot store NUL and no database can store unpaired surrogates; both become U+FFFD.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return _NOT_STORABLE.sub("\ufffd", value)


pairs = Table(
    "pairs",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("content_sha256", String(64), nullable=False, unique=True),
    Column("prompt_key", String(64), nullable=False, index=True),
    Column("prompt", Text, nullable=False),
    Column("solution", Text, nullable=False),
    Column("verifier", String(64), nullable=False),
    Column("reference", Text, nullable=False),
    Column("source", Text, nullable=False, index=True),
    Column("stratum", Text, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("verdict_kind", String(16), nullable=False),
    Column("verdict_verifier", String(64), nullable=False),
    Column("verdict_evidence", LooseText, nullable=False),
    Column("verdict_duration_s", Double, nullable=False),
    Column("submitter", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    sqlite_autoincrement=True,
)

attempts = Table(
    "attempts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("request_id", LooseText, nullable=False),
    Column("adapter", String(64), nullable=False),
    Column("prompt", LooseText, nullable=False),
    Column("completion", LooseText, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("rating", String(16), nullable=True),
    Column("comment", LooseText, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("state", String(32), nullable=False, index=True),
    Column("trigger", String(32), nullable=False),
    Column("actor", LooseText, nullable=False),
    Column("reason", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("updated_unix_s", Double, nullable=False),
    Column("overrides_json", Text, nullable=False),
    Column("source", LooseText, nullable=False),
    Column("request_id", LooseText, nullable=False),
    Column("spec_json", Text, nullable=False),
    Column("run_dir", Text, nullable=False),
    Column("num_pairs", Integer, nullable=False),
    Column("step", Integer, nullable=False),
    Column("num_steps", Integer, nullable=False),
    Column("metrics_json", LooseText, nullable=False),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("eval_done", Integer, nullable=False),
    Column("eval_total", Integer, nullable=False),
    Column("candidate", String(64), nullable=False),
    Column("incumbent_at_start", String(64), nullable=False),
    Column("launches", Integer, nullable=False),
    Column("cancel_reason", LooseText, nullable=False),
    Column("cancel_actor", LooseText, nullable=False),
    Column("error", LooseText, nullable=False),
    Column("log_tail", LooseText, nullable=False),
    Column("same_data_as", String(36), nullable=False, server_default=""),
    Column("measure_only", Boolean, nullable=False, server_default=false()),
    Column("teacher_check_json", LooseText, nullable=False, server_default=""),
    sqlite_autoincrement=True,
)
Index(
    "uq_runs_request_id",
    runs.c.request_id,
    unique=True,
    sqlite_where=text("request_id <> ''"),
    postgresql_where=text("request_id <> ''"),
)

run_history = Table(
    "run_history",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False, index=True),
    Column("state", String(32), nullable=False),
    Column("time_unix_s", Double, nullable=False),
    Column("reason", LooseText, nullable=False),
    sqlite_autoincrement=True,
)

curve_points = Table(
    "curve_points",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("suite", String(64), primary_key=True),
    Column("generated_tokens", BigInteger, nullable=False),
    Column("train_s", Double, nullable=False),
    Column("n", Integer, nullable=False),
    Column("accuracy", Double, nullable=False),
    Column("tokens_mean", Double, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    # The newest pair that the snapshot could have held.
    Column("last_pair_seq", BigInteger, nullable=False),
    Column("created_unix_s", Double, nullable=False),
)

snapshot_pairs = Table(
    "snapshot_pairs",
    metadata,
    Column("run_id", ForeignKey("snapshots.run_id", ondelete="CASCADE"), primary_key=True),
    Column("pair_id", ForeignKey("pairs.id"), primary_key=True, index=True),
)

solve_counts = Table(
    "solve_counts",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("pair_id", ForeignKey("pairs.id"), primary_key=True, index=True),
    Column("attempts", Integer, nullable=False),
    Column("solved", Integer, nullable=False),
)

pool_lease = Table(
    "pool_lease",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("holder", String(64), nullable=False),  # "": free
    Column("acquired_unix_s", Double, nullable=False),
    Column("expires_unix_s", Double, nullable=False),
)

adapters = Table(
    "adapters",
    metadata,
    Column("lora_id", BigId, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("run_id", String(36), nullable=False, index=True),
    Column("path", Text, nullable=False),
    Column("rank", Integer, nullable=False),
    Column("alpha", Double, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("model_fingerprint", String(128), nullable=False),
    Column("created_unix_s", Double, nullable=False),
    sqlite_autoincrement=True,
)

incumbent = Table(
    "incumbent",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("adapter", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("canary", String(64), nullable=False),
    Column("canary_share", Double, nullable=False),
    Column("changed_unix_s", Double, nullable=False),
    Column("actor", LooseText, nullable=False),
    Column("reason", LooseText, nullable=False),
)

gate_reports = Table(
    "gate_reports",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("run_id", String(36), nullable=False, index=True),
    Column("candidate", String(64), nullable=False, index=True),
    Column("verdict", String(16), nullable=False),
    Column("report_json", LooseText, nullable=False),
    sqlite_autoincrement=True,
)

gate_outcomes = Table(
    "gate_outcomes",
    metadata,
    Column("run_id", String(36), primary_key=True),
    Column("adapter", String(64), primary_key=True),
    Column("suite", String(64), primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("solved", Boolean, nullable=True),  # null: no outcome
    Column("tokens", Integer, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("time_unix_s", Double, nullable=False),
    Column("actor", LooseText, nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("reason", LooseText, nullable=False),
    Column("detail_json", LooseText, nullable=False),
    sqlite_autoincrement=True,
)
