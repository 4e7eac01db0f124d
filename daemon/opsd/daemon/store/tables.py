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
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
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


def storable(text: str) -> str:
    """What ``LooseText`` keeps of a text."""
    return _NOT_STORABLE.sub("\ufffd", text)


class LooseText(TypeDecorator[str]):
    """Text from outside that must be kept whatever it holds: model output, logs, people's reasons.

    PostgreSQL cannot store NUL and no database can store unpaired surrogates; both become U+FFFD.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


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
    Column("source", Text, nullable=False),
    Column("stratum", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("verdict_kind", String(16), nullable=False),
    Column("verdict_verifier", String(64), nullable=False),
    Column("verdict_evidence", LooseText, nullable=False),
    Column("verdict_duration_s", Double, nullable=False),
    Column("submitter", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("origin", String(32), nullable=False, server_default="submitted"),
    Column("quarantine_reason", LooseText, nullable=False, server_default=""),
    # Random, in [0, 2^63), fixed at insertion: a range of it is a random sample.
    Column("sample_key", BigInteger, nullable=False, server_default="0"),
    Column("group_id", BigInteger, nullable=False, server_default="0"),
    Column("size_bytes", BigInteger, nullable=False, server_default="0"),
    Column("has_bands", Boolean, nullable=False, server_default=false()),
    sqlite_autoincrement=True,
)
Index("ix_pairs_status_seq", pairs.c.status, pairs.c.seq)
Index("ix_pairs_source_seq", pairs.c.source, pairs.c.seq)
Index("ix_pairs_submitter_seq", pairs.c.submitter, pairs.c.seq)
Index("ix_pairs_draw", pairs.c.group_id, pairs.c.status, pairs.c.sample_key)
Index(
    "ix_pairs_without_bands",
    pairs.c.seq,
    sqlite_where=text("NOT has_bands"),
    postgresql_where=text("NOT has_bands"),
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
    # How its adapter was drawn, where a canary is compared by it; null: it was not.
    Column("canary_share", Double, nullable=True),
    Column("caller", String(32), nullable=False, server_default=""),
)
Index("ix_attempts_created_unix_s", attempts.c.created_unix_s)

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
    Column("prev_sha256", String(64), nullable=False, server_default=""),
    Column("entry_sha256", String(64), nullable=False, server_default=""),
    sqlite_autoincrement=True,
)

gate_inputs = Table(
    "gate_inputs",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the canonical bytes, uncompressed
    Column("run_id", String(36), nullable=False, index=True),
    Column("data", LargeBinary, nullable=False),  # zlib
    Column("created_unix_s", Double, nullable=False),
)

gate_uses = Table(
    "gate_uses",
    metadata,
    Column("run_id", String(36), primary_key=True),
    Column("suite", String(64), primary_key=True),
    Column("suite_sha256", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("gate_number", Integer, nullable=False),  # on the most used of its items, from 1
    Column("alpha", Double, nullable=False),  # what all gates on the same items may spend
    Column("time_unix_s", Double, nullable=False),
)

gate_item_uses = Table(
    "gate_item_uses",
    metadata,
    Column("prompt_key", String(64), primary_key=True),
    Column("uses", Integer, nullable=False),
)

suites = Table(
    "suites",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("name", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("num_items", Integer, nullable=False),
    Column("role", String(16), nullable=False),
    Column("margin", Double, nullable=False),
    Column("stratum_margin", Double, nullable=False),
    Column("sealed", Boolean, nullable=False),
    Column("budget", Integer, nullable=False),
    Column("samples", Integer, nullable=False),
    Column("source", String(16), nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("actor", LooseText, nullable=False),
    Column("reason", LooseText, nullable=False),
    Column("path", Text, nullable=False),
    Column("description", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("retired_unix_s", Double, nullable=False),
    Column("fresh_share", Double, nullable=False),
    Column("queries_carried", Integer, nullable=False),
    UniqueConstraint("name", "version", name="uq_suites_name_version"),
    sqlite_autoincrement=True,
)

# Every problem that ever stood in a suite; what is fresh is told by it.
suite_prompts = Table(
    "suite_prompts",
    metadata,
    Column("prompt_key", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
)

# The gates that used a suite, once each.
suite_uses = Table(
    "suite_uses",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("run_id", String(36), primary_key=True),
    Column("time_unix_s", Double, nullable=False),
)

answer_cache = Table(
    "answer_cache",
    metadata,
    Column("conditions", String(64), primary_key=True),
    Column("adapter", String(128), primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("sample", Integer, primary_key=True),
    Column("run_id", String(36), nullable=False),  # that asked for it
    Column("solved", Boolean, nullable=True),  # null: it could not be told
    Column("record_json", Text, nullable=False),
    Column("used_unix_s", Double, nullable=False, index=True),
)

# Two entries never follow the same one: the chain cannot fork.
Index("uq_audit_prev_sha256", audit.c.prev_sha256, unique=True)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("entry_id", BigInteger, nullable=False),  # 0: no entry yet
    Column("entry_sha256", String(64), nullable=False),
)
canaries = Table(
    "canaries",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("adapter", String(64), nullable=False, index=True),
    Column("salt", String(32), nullable=False),
    Column("plan_json", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("started_unix_s", Double, nullable=False),
    Column("step_started_unix_s", Double, nullable=False),
    Column("statistics_json", Text, nullable=False),
    Column("end", String(16), nullable=False),
    Column("ended_unix_s", Double, nullable=False),
    Column("reason", LooseText, nullable=False),
    sqlite_autoincrement=True,
)

# Callers that a canary's comparison has counted, hashed; each counts once.
canary_callers = Table(
    "canary_callers",
    metadata,
    Column("canary_id", ForeignKey("canaries.id"), primary_key=True),
    Column("stream", String(16), primary_key=True),
    Column("caller", String(32), primary_key=True),
)

# Only ever added to.
votes = Table(
    "votes",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("adapter", String(64), nullable=False, index=True),
    Column("ballot", Integer, nullable=False),
    Column("actor", LooseText, nullable=False),
    Column("actor_key", LooseText, nullable=False),
    Column("decision", String(16), nullable=False),
    Column("override", Boolean, nullable=False),
    Column("reason", LooseText, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("time_unix_s", Double, nullable=False),
    Column("deciding", Boolean, nullable=False),
    sqlite_autoincrement=True,
)
Index("uq_votes_adapter", votes.c.adapter, votes.c.ballot, votes.c.actor_key, unique=True)
# Counts are kept with every change, in its transaction: counting a million rows takes as long as
# reading them.
pair_counts = Table(
    "pair_counts",
    metadata,
    Column("id", Integer, CheckConstraint("id = 1", name="single"), primary_key=True),
    Column("num_verified", BigInteger, nullable=False),
    Column("num_unverified", BigInteger, nullable=False),
    Column("num_quarantined", BigInteger, nullable=False),
    Column("num_purged", BigInteger, nullable=False),
    # Verified pairs after snapshot_seq, the greatest last_pair_seq of all snapshots.
    Column("num_new", BigInteger, nullable=False),
    Column("snapshot_seq", BigInteger, nullable=False),
)

# One row for each source, submitter and origin that pairs have.
pair_groups = Table(
    "pair_groups",
    metadata,
    Column("id", BigId, primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),
    Column("submitter", LooseText, nullable=False, index=True),
    Column("origin", String(32), nullable=False),
    Column("num_verified", BigInteger, nullable=False),
    Column("num_unverified", BigInteger, nullable=False),
    Column("num_quarantined", BigInteger, nullable=False),
    Column("num_purged", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
Index(
    "uq_pair_groups_names",
    pair_groups.c.source,
    pair_groups.c.submitter,
    pair_groups.c.origin,
    unique=True,
)

# Pairs that share a key may be near-duplicates.
pair_bands = Table(
    "pair_bands",
    metadata,
    Column("band_key", BigInteger, primary_key=True, autoincrement=False),
    Column("pair_seq", BigInteger, primary_key=True, autoincrement=False),
    sqlite_with_rowid=False,
)

quota_use = Table(
    "quota_use",
    metadata,
    Column("submitter", LooseText, primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),  # since the epoch, UTC
    Column("num_pairs", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
)

problems = Table(
    "problems",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("id", String(36), nullable=False, unique=True),
    Column("content_sha256", String(64), nullable=False, unique=True),
    Column("prompt_key", String(64), nullable=False, index=True),
    Column("prompt", Text, nullable=False),
    Column("verifier", String(64), nullable=False),
    Column("reference", Text, nullable=False),  # "": nobody knows the answer
    Column("source", Text, nullable=False, index=True),
    Column("stratum", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("origin", String(32), nullable=False),
    Column("parent_id", String(36), nullable=False),
    # Who works on it, see types.problems.Answerable: a column, so that one index serves the queue.
    Column("answerable", String(16), nullable=False),
    Column("submitter", LooseText, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("solves", Integer, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("next_try_unix_s", Double, nullable=False),
    Column("pair_id", String(36), nullable=False),
    Column("note", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    Column("updated_unix_s", Double, nullable=False),
    sqlite_autoincrement=True,
)
Index(
    "ix_problems_queue",
    problems.c.answerable,
    problems.c.state,
    problems.c.priority,
    problems.c.seq,
)

attempt_outcomes = Table(
    "attempt_outcomes",
    metadata,
    Column("seq", BigId, primary_key=True, autoincrement=True),
    Column("attempt_id", String(64), nullable=False),
    Column("adapter", String(64), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reporter", LooseText, nullable=False),
    Column("verified", Boolean, nullable=False),
    Column("comment", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
    sqlite_autoincrement=True,
)
# One reported and one verified outcome for each attempt: statistics must not count it twice.
Index(
    "uq_attempt_outcomes_attempt_id",
    attempt_outcomes.c.attempt_id,
    attempt_outcomes.c.verified,
    unique=True,
)
Index("ix_attempt_outcomes_adapter", attempt_outcomes.c.adapter, attempt_outcomes.c.seq)

pair_provenance = Table(
    "pair_provenance",
    metadata,
    # Not a foreign key: it is written before the pair, so that none of the model's own is without.
    Column("pair_id", String(36), primary_key=True),
    Column("origin", String(32), nullable=False),
    Column("problem_id", String(36), nullable=False),
    Column("adapter", String(64), nullable=False),
    Column("detail_json", LooseText, nullable=False),
    Column("created_unix_s", Double, nullable=False),
)
Index(
    "ix_pair_provenance_origin",
    pair_provenance.c.origin,
    pair_provenance.c.created_unix_s,
)
