"""Opening: URLs, the lock, migrations."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from opsd.daemon.errors import StoreError
from opsd.daemon.store.connect import safe_url, sqlite_url
from opsd.daemon.store.migrations.upgrade import scripts
from opsd.daemon.store.sql import SqlStore, open_store
from opsd.daemon.store.tables import LooseText, metadata


def test_passwords_are_hidden() -> None:
    assert "secret" not in safe_url("postgresql+psycopg://user:secret@host/opsd")
    assert safe_url("postgresql+psycopg://user:secret@host/opsd").endswith("@host/opsd")
    assert safe_url("::secret::") == "(not a URL)"


def test_no_message_holds_the_password(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(f"postgresql+psycopg://user:secret@/opsd?host={tmp_path}")
    assert "secret" not in str(caught.value)
    assert "user" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not a database URL"),
        ("opsd.db", "not a database URL"),
        ("mysql://host/opsd", "mysql"),
        ("sqlite://", "without a plain file"),
        ("sqlite:///:memory:", "without a plain file"),
        ("sqlite:////no/such/directory/opsd.db", "/no/such/directory"),
        ("sqlite:////tmp", "is a directory"),
    ],
)
def test_what_cannot_be_opened_is_refused(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "opsd.db"
    path.write_bytes(b"this is not a database, it is a letter to a friend" * 100)
    with pytest.raises(StoreError, match="not a database"):
        open_store(sqlite_url(tmp_path))


def test_sqlite_is_durable(tmp_path: Path) -> None:
    store = open_store(sqlite_url(tmp_path))

    def pragmas(connection: Connection) -> tuple[object, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return tuple(connection.execute(text(f"PRAGMA {name}")).scalar() for name in names)

    assert store._database.write(pragmas) == ("wal", 2, 1)
    store.close()


def test_a_second_daemon_is_kept_out(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opsd.daemon.store.locks.WAIT_S", 0.2)
    store = open_store(store_url)
    with pytest.raises(StoreError, match="another daemon"):
        open_store(store_url)
    # The refused one must not have taken the lock away from the first.
    with pytest.raises(StoreError, match="another daemon"):
        open_store(store_url)
    store.close()
    open_store(store_url).close()


def test_the_holders_pid_is_named(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path)
    program = (
        "import sys; from opsd.daemon.store.sql import open_store;"
        f"open_store({url!r}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(StoreError, match=f"pid {holder.pid}"):
            open_store(url)
        holder.kill()
    open_store(url).close()


def test_a_child_forked_from_a_dead_daemon_does_not_hold_the_store(tmp_path: Path) -> None:
    """An engine process that outlives its daemon has the daemon's open files."""
    url = sqlite_url(tmp_path)
    program = (
        "import os, sys, time; from opsd.daemon.store.sql import open_store;"
        f"s = open_store({url!r}); pid = os.fork();"
        "(time.sleep(60), os._exit(0)) if pid == 0 else (print(pid, flush=True), os._exit(0))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        orphan = int(daemon.stdout.readline())
        daemon.wait()
        try:
            open_store(url).close()
        finally:
            os.kill(orphan, 9)


def test_migrations_make_what_the_code_expects(store: SqlStore) -> None:
    def difference(connection: Connection) -> list[object]:
        def same_type(
            _context: object,
            _column: object,
            _metadata_column: object,
            _found: object,
            wanted: object,
        ) -> bool | None:
            return False if isinstance(wanted, LooseText) else None

        context = MigrationContext.configure(connection, opts={"compare_type": same_type})
        return list(compare_metadata(context, metadata))

    assert store._database.read(difference) == []


def test_opening_again_changes_nothing(store_url: str) -> None:
    for _ in range(2):
        store = open_store(store_url)
        revision = store._database.read(
            lambda connection: (
                connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all()
            )
        )
        assert revision == scripts().get_heads()
        store.close()


def test_a_newer_database_is_refused_and_left_alone(store_url: str) -> None:
    store = open_store(store_url)
    store._database.write(
        lambda connection: connection.execute(
            text("UPDATE alembic_version SET version_num = '9999'")
        )
    )
    store.close()
    for _ in range(2):
        with pytest.raises(StoreError, match=r"'9999'.*newer"):
            open_store(store_url)


def test_a_migration_that_fails_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "opsd.db"

    def fail(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr("alembic.op.execute", fail)
    with pytest.raises(RuntimeError, match="power cut"):
        open_store(sqlite_url(tmp_path))
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_rows_of_the_first_version_get_the_new_columns(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ScriptDirectory._upgrade_revs
    with monkeypatch.context() as first:
        first.setattr(
            ScriptDirectory, "_upgrade_revs", lambda self, _, now: steps(self, "0001", now)
        )
        store = open_store(store_url)
    names = [
        *("id", "state", "trigger", "actor", "reason", "created_unix_s", "updated_unix_s"),
        *("overrides_json", "source", "request_id", "spec_json", "run_dir", "num_pairs", "step"),
        *("num_steps", "metrics_json", "generated_tokens", "eval_done", "eval_total", "candidate"),
        *("incumbent_at_start", "launches", "cancel_reason", "cancel_actor", "error", "log_tail"),
    ]
    numbers = {"created_unix_s", "updated_unix_s", "num_pairs", "step", "num_steps", "eval_done"}
    numbers |= {"generated_tokens", "eval_total", "launches"}
    row = {name: 0 if name in numbers else "" for name in names}
    row |= {"id": "r" * 36, "state": "failed", "trigger": "cron"}
    places = ", ".join(f":{name}" for name in names)
    query = text(f"INSERT INTO runs ({', '.join(names)}) VALUES ({places})")
    store._database.write(lambda connection: connection.execute(query, row))
    store.close()

    store = open_store(store_url)
    run = store.get_run("r" * 36)
    assert (run.same_data_as, run.measure_only, run.teacher_check_json) == ("", False, "")
    assert run.curve == ()
    assert store.solve_counts([]) == {}
    store.close()
