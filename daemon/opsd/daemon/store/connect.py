"""From a URL to an open, migrated database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from opsd.daemon.errors import StoreError
from opsd.daemon.store.database import Database, Guard, failure
from opsd.daemon.store.locks import AdvisoryGuard, FileGuard, NoGuard
from opsd.daemon.store.migrations.upgrade import upgrade

BUSY_TIMEOUT_MS = 10_000
CONNECT_TIMEOUT_S = 10
READERS = 16
WRITER_CACHE_KIB = 64 << 10
# A daemon whose machine lost power must not keep its lock for the two hours of TCP's own patience.
KEEPALIVES = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"
EXAMPLES = "sqlite:////var/lib/opsd/opsd.db or postgresql+psycopg://user@host/opsd"


def safe_url(url: str) -> str:
    """The URL as it may be logged: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "(not a URL)"


def sqlite_url(state_dir: Path) -> str:
    """The database that a daemon keeps in its state directory when no other is configured."""
    return f"sqlite:///{(state_dir / 'opsd.db').resolve()}"


def open_database(url: str, *, exclusive: bool) -> Database:
    """Opens, locks and migrates; raises StoreError."""
    parsed = _parse(url)
    guard: Guard
    if parsed.get_backend_name() == "sqlite":
        path = _sqlite_path(parsed)
        guard = NoGuard()
        if exclusive:
            # Before anything touches the database: two writing connections are what must not be.
            guard = FileGuard(path)
            guard.acquire()
        writer, reader = _sqlite_engines(parsed.set(database=str(path)))
    else:
        guard = AdvisoryGuard(safe_url(url)) if exclusive else NoGuard()
        writer, reader = _postgresql_engines(parsed)
    database = Database(writer, reader, guard, safe_url(url))
    try:
        database.write(upgrade)
    except StoreError:
        database.close()
        raise
    except SQLAlchemyError as error:
        database.close()
        raise failure(safe_url(url), "be opened", error) from error
    return database


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise StoreError(f"store.url is not a database URL; write it like {EXAMPLES}") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise StoreError(
            f"store.url names {parsed.drivername!r}, which is not supported; "
            f"write it like {EXAMPLES}"
        )
    return parsed


def _sqlite_path(url: URL) -> Path:
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StoreError(
            "store.url names a SQLite database without a plain file, which would not survive the "
            "daemon; write it like sqlite:////var/lib/opsd/opsd.db"
        )
    path = Path(url.database).resolve()
    if not path.parent.is_dir():
        raise StoreError(
            f"the directory of the database, {path.parent}, does not exist: make it first"
        )
    if path.is_dir():
        raise StoreError(f"{path} is a directory; store.url must name a file in it")
    return path


def _sqlite_engines(url: URL) -> tuple[Engine, Engine]:
    arguments = {"check_same_thread": False, "timeout": BUSY_TIMEOUT_MS / 1000}
    writer = create_engine(url, poolclass=NullPool, connect_args=arguments)
    reader = create_engine(
        url, poolclass=QueuePool, pool_size=READERS, max_overflow=READERS, connect_args=arguments
    )
    # FULL: a commit is on the disk when it returns, also in WAL mode. One writing connection only:
    # the SQLite that comes with Python here can corrupt a WAL that two connections write and reset.
    # The cache holds what a batch of pairs touches: their indexes are written at random places.
    _prepare(
        writer,
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"cache_size=-{WRITER_CACHE_KIB}",
    )
    _prepare(reader, "query_only=ON")
    event.listen(writer, "begin", _begin_immediate)
    event.listen(reader, "begin", _begin)
    return writer, reader


def _prepare(engine: Engine, *pragmas: str) -> None:
    def on_connect(connection: Any, _record: object) -> None:
        # The driver's own transaction handling would begin too late and commit around DDL.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    event.listen(engine, "connect", on_connect)


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _postgresql_engines(url: URL) -> tuple[Engine, Engine]:
    def arguments(options: str) -> dict[str, Any]:
        given = url.query.get("options", "")
        asked = " ".join(given) if isinstance(given, tuple) else given
        return {"connect_timeout": CONNECT_TIMEOUT_S, "options": f"{asked} {options}".strip()}

    # A server that acknowledges commits before they are on its disk must not do so to us.
    writer = create_engine(
        url, poolclass=NullPool, connect_args=arguments(f"-c synchronous_commit=on {KEEPALIVES}")
    )
    reader = create_engine(
        url,
        pool_size=READERS,
        max_overflow=READERS,
        pool_pre_ping=True,
        connect_args=arguments("-c default_transaction_read_only=on"),
    )
    return writer, reader
