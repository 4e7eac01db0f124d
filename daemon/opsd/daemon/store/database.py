"""Connections and transactions: many readers, one writer, commits shared by whoever waits."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from opsd.daemon.errors import OpsdError, StoreError
from opsd.daemon.store import failpoints
from opsd.daemon.store.decisions import Surroundings

log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_BATCH = 256
"""Writes in one transaction; bounds how long the first of them waits for the last."""


class Guard(Protocol):
    """What keeps a second daemon away from the store."""

    def acquire(self, writer: Connection) -> None:
        """Called for every new writing connection; raises StoreError when it is taken."""

    def release(self) -> None: ...


@dataclass(slots=True)
class _Job(Generic[T]):
    work: Callable[[Connection], T]
    name: str
    done: bool = False
    result: T | None = None
    error: BaseException | None = None


class Database:
    """A database with one writing connection.

    Writes that arrive while another one commits go together into the next transaction, each in its
    own savepoint: with N threads waiting, one fsync serves N of them. A caller returns after the
    commit that holds its write.
    """

    def __init__(self, writer: Engine, reader: Engine, guard: Guard, safe_url: str) -> None:
        self.safe_url = safe_url
        self._writer_engine = writer
        self._reader_engine = reader
        self._guard = guard
        self._writer: Connection | None = None
        self._turn = threading.Lock()
        self._waiting: deque[_Job[object]] = deque()
        self._closed = False
        self.surroundings = Surroundings()

    @property
    def dialect(self) -> str:
        return self._writer_engine.dialect.name

    def read(self, work: Callable[[Connection], T]) -> T:
        """Runs ``work`` on a reading connection, in one transaction."""
        try:
            with self._reader_engine.connect() as connection:
                return work(connection)
        except SQLAlchemyError as error:
            raise self._failure("read", error) from error

    def write(self, work: Callable[[Connection], T], *, name: str = "") -> T:
        """Runs ``work`` in a transaction and returns once it is durable.

        ``work`` may be run a second time when a transaction that it shared with others had to be
        undone. ``name`` is that of the failpoints around the commit.
        """
        job = _Job(work, name)
        self._waiting.append(cast("_Job[object]", job))
        with self._turn:
            while not job.done:
                self._run_next_batch()
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    def close(self) -> None:
        with self._turn:
            self._closed = True
            self._drop_writer()
            self._writer_engine.dispose()
            self._reader_engine.dispose()
            self._guard.release()

    def _run_next_batch(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), MAX_BATCH))]
        assert batch, "a write that is not done is in the queue"
        try:
            if len(batch) == 1 or not self._run_together(batch):
                for job in batch:
                    self._run_alone(job)
        finally:
            # An interrupt in the middle must not leave the others waiting for ever.
            for job in batch:
                if not job.done:
                    job.error = StoreError(
                        f"the store at {self.safe_url} was interrupted: try again"
                    )
                    job.done = True

    def _run_together(self, batch: list[_Job[object]]) -> bool:
        """False when nothing was committed and each must be tried on its own."""
        try:
            connection = self._connected_writer()
            with connection.begin() as transaction:
                for job in batch:
                    job.error = None
                    try:
                        with connection.begin_nested():
                            job.result = job.work(connection)
                    except OpsdError as error:
                        job.error = error
                self._commit(transaction.commit, batch)
        except Exception as error:
            self._forget_broken_writer(error)
            if all(job.done for job in batch):
                return True
            log.warning("event=batch_undone writes=%d error=%r", len(batch), error)
            return False
        return True

    def _run_alone(self, job: _Job[object]) -> None:
        try:
            with self._connected_writer().begin() as transaction:
                job.error = None
                job.result = job.work(transaction.connection)
                self._commit(transaction.commit, [job])
        except OpsdError as error:
            job.error = error
        except SQLAlchemyError as error:
            self._forget_broken_writer(error)
            job.error = job.error or self._failure("write", error)
        except Exception as error:
            job.error = error
        job.done = True

    def _commit(self, commit: Callable[[], None], batch: list[_Job[object]]) -> None:
        names = dict.fromkeys(job.name for job in batch if job.name and job.error is None)
        for name in names:
            failpoints.hit(f"{name}-before-commit")
        try:
            commit()
        except SQLAlchemyError as error:
            # Whether it took effect is not known (the connection may have died after it did), so it
            # must not simply be run again: a promotion would then meet itself.
            failure = self._failure("commit", error)
            for job in batch:
                job.error, job.done = failure, True
            raise
        for name in names:
            failpoints.hit(f"{name}-after-commit")
        for job in batch:
            job.done = True

    def _connected_writer(self) -> Connection:
        if self._closed:
            raise StoreError(f"the store at {self.safe_url} is closed")
        if self._writer is None:
            writer = self._writer_engine.connect()
            try:
                self._guard.acquire(writer)
            except BaseException:
                writer.close()
                raise
            self.surroundings.attach(writer)
            self._writer = writer
        return self._writer

    def _forget_broken_writer(self, error: Exception) -> None:
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            log.warning("event=store_connection_lost store=%s", self.safe_url)
            self._drop_writer()

    def _drop_writer(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()

    def _failure(self, verb: str, error: SQLAlchemyError) -> StoreError:
        return failure(self.safe_url, verb, error)


def failure(safe_url: str, verb: str, error: SQLAlchemyError) -> StoreError:
    """What the driver says, without the statement and its (large, private) parameters."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return StoreError(f"the store at {safe_url} could not {verb}: {lines[0]}")
