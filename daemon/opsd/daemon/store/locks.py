"""One daemon per store."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from pathlib import Path
from typing import ClassVar

from sqlalchemy import Connection, text

from opsd.daemon.errors import StoreError

ADVISORY_KEY = 0x6F707364  # "opsd"
MIGRATION_KEY = ADVISORY_KEY + 1
PAIRS_KEY = ADVISORY_KEY + 2

WAIT_S = 5.0
"""PostgreSQL notices only after a moment that the daemon before, killed or stopped, is gone."""
POLL_S = 0.1

_TRY_LOCK = text(f"SELECT pg_try_advisory_lock({ADVISORY_KEY})")
_HOLDER = text(
    f"SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = {ADVISORY_KEY}"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)

# struct flock of Linux on 64-bit machines: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


class NoGuard:
    """For tools and tests that may share the store."""

    def acquire(self, writer: Connection) -> None:
        pass

    def release(self) -> None:
        pass


class FileGuard:
    """A POSIX lock on a file beside the database, held for the process's life.

    POSIX locks and not flock(2): a child forked from the daemon does not inherit them, so an
    orphaned engine process cannot keep a restarted daemon out. In exchange they do not see a second
    opening in the same process, and closing any descriptor of the file drops them; the registry
    stands for both.
    """

    _held: ClassVar[set[Path]] = set()
    _registry: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".lock").resolve()
        self._descriptor: int | None = None

    def acquire(self, writer: Connection | None = None) -> None:
        with self._registry:
            if self._descriptor is not None:
                return
            if self._path in self._held:
                raise self._taken(os.getpid())
            self._descriptor = self._lock()
            self._held.add(self._path)

    def release(self) -> None:
        with self._registry:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None
                self._held.discard(self._path)

    def _lock(self) -> int:
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(
                f"cannot write {self._path}: {error.strerror}; "
                "the daemon needs write permission there"
            ) from error
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            holder = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))[4]
            os.close(descriptor)
            raise self._taken(holder) from error
        return descriptor

    def _taken(self, pid: int) -> StoreError:
        return StoreError(
            f"another daemon (pid {pid}) uses this store: it holds {self._path}; stop it, or "
            "give this one its own state_dir"
        )


class AdvisoryGuard:
    """PostgreSQL's session lock on the writing connection itself: whoever writes holds it, and a
    connection that was lost must win it again before it writes."""

    def __init__(self, safe_url: str) -> None:
        self._safe_url = safe_url

    def acquire(self, writer: Connection) -> None:
        deadline = time.monotonic() + WAIT_S
        while True:
            with writer.begin():
                if writer.execute(_TRY_LOCK).scalar():
                    return
                holder = writer.execute(_HOLDER).scalar()
            if time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        raise StoreError(
            f"another daemon uses the store at {self._safe_url} (backend pid {holder} holds its "
            "advisory lock); stop it, or give this one its own database"
        )

    def release(self) -> None:
        """The lock ends with the connection."""
