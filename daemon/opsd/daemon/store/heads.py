"""Signed heads of the audit log, kept outside the database.

Whoever can write the database can rewrite the log and all of its hashes. What they cannot do is
make it agree with a head that was signed before: so heads are signed as the log grows, and no head
is signed that does not continue the one before.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsd.daemon.errors import StoreError
from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import GENESIS, ChainVerifier, Head, Problem
from opsd.daemon.types.signatures import (
    HEAD_TYPE,
    KeyRing,
    SignatureProblem,
    Signer,
    head_of,
    seal,
)

log = logging.getLogger(__name__)


class LogReader(Protocol):
    """The part of the store that heads are made from."""

    def audit_head(self) -> Head: ...

    def audit_entry(self, entry_id: int) -> AuditEntry | None: ...

    def audit_entries(self, *, after_id: int = 0) -> Iterator[list[AuditEntry]]: ...


@dataclass(frozen=True, slots=True)
class SignedHead:
    head: Head
    envelope: str  # as it is in the file, and as an export carries it


class HeadKeeper:
    """Signs heads and appends them to a file, each durable before it is spoken of.

    Safe to call from several threads.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        trusted: KeyRing,
        reader: LogReader,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._signer = signer
        self._trusted = trusted
        self._reader = reader
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def path(self) -> Path:
        return self._path

    def read(self) -> tuple[list[SignedHead], list[Problem]]:
        """The heads in the file, oldest first, and what is wrong with its lines."""
        heads: list[SignedHead] = []
        problems: list[Problem] = []
        for number, line in enumerate(self._lines(), start=1):
            try:
                heads.append(SignedHead(head_of(line, self._trusted), line))
            except SignatureProblem as error:
                problems.append(Problem(0, f"{self._path}, line {number}: {error}"))
        return heads, problems

    def newest_signed(self) -> SignedHead | None:
        """The last head in the file that counts; does not read what stands far before it."""
        for whole in (False, True):
            for line in reversed(self._lines(whole=whole)):
                with suppress(SignatureProblem):
                    return SignedHead(head_of(line, self._trusted), line)
        return None

    def newest(self) -> Head:
        """The same without its envelope; that of an empty log when there is none."""
        signed = self.newest_signed()
        return signed.head if signed else _EMPTY

    def sign(self) -> list[Problem]:
        """Signs the log's head as it is now, when it has moved since the last one.

        Returns what is wrong, and signs nothing then, when the log does not continue the head that
        was signed before. Raises StoreError when the file cannot be written.
        """
        with self._lock:
            before = self.newest()
            chain = self._since(before)
            if chain.problems:
                return chain.problems
            if chain.head.id == before.id:
                return []
            statement = {
                "id": chain.head.id,
                "sha256": chain.head.sha256,
                "time_unix_s": self._clock(),
            }
            self._append(seal(HEAD_TYPE, statement, self._signer))
            return []

    def _since(self, before: Head) -> ChainVerifier:
        """The chain from the last signed head to the log's head of now."""
        now = self._reader.audit_head()
        chain = ChainVerifier(anchors=[now])
        if before.id:
            entry = self._reader.audit_entry(before.id)
            if entry is None or entry.entry_sha256 != before.sha256:
                found = "is missing" if entry is None else f"has {entry.entry_sha256[:16]}…"
                chain.report(
                    before.id, f"{found}, its signed head is {before.sha256[:16]}… ({self._path})"
                )
                return chain
            chain.last = entry
        for batch in self._reader.audit_entries(after_id=before.id):
            for entry in batch:
                chain.feed(entry)
        if now.id > before.id:
            chain.finish()
        elif now != before:
            chain.report(now.id, f"is where the table audit_head ends the log, before {before.id}")
        return chain

    def _lines(self, *, whole: bool = True) -> list[str]:
        """All lines, or at least the last ones."""
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = 0 if whole else max(0, size - _TAIL_BYTES)
                file.seek(start)
                text = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error}") from error
        lines, _, torn = text.rpartition(b"\n")
        if torn:
            log.warning("heads=%s: the last line is not whole and does not count", self._path)
        found = lines.decode("utf-8", "replace").splitlines()
        return found[1:] if start else found

    def _append(self, line: str) -> None:
        try:
            fresh = not self._path.exists()
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(self._path, "ab+", opener=_private) as file:
                _drop_torn_line(file.fileno())
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            if fresh:
                directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(directory)
                finally:
                    os.close(directory)
        except OSError as error:
            raise StoreError(f"{self._path}: a signed head cannot be added: {error}") from error


_EMPTY = Head(0, GENESIS)
_TAIL_BYTES = 1 << 16


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _drop_torn_line(descriptor: int) -> None:
    """What a crash left half written; nobody was told of it."""
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    text = os.pread(descriptor, size, 0)
    os.ftruncate(descriptor, text.rfind(b"\n") + 1)
