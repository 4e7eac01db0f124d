"""The audit log's hash chain: what an entry's hash covers, and how a log is checked.

Nothing here needs a daemon or a database: whoever has an export can run it.
docs/reference/audit.md defines the encoding, with an example to compute by hand.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from opsd.daemon.types.adapters import AuditEntry

GENESIS: Final = "0" * 64
"""What the first entry has in the place of its predecessor's hash."""

DOMAIN: Final = b"opsd.audit.v1"
CHAINED: Final = "audit.chain"
"""The entry that a migration adds when it chains a log that had no hashes: ids before it may skip,
since the databases of then could lose one."""

MAX_PROBLEMS: Final = 100
"""More are counted, not described."""


def canonical_json(value: object) -> str:
    """The one text of a JSON value: keys sorted, no spaces, ASCII; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256_hex(data: bytes | str) -> str:
    return hashlib.sha256(_utf8(data) if isinstance(data, str) else data).hexdigest()


def entry_sha256(entry: AuditEntry) -> str:
    """The entry's hash, over everything but the hash itself; ``prev_sha256`` is the chain's link.

    Each field is preceded by its length in bytes (8 bytes, big-endian), so that no two entries have
    the same encoding. The time is the IEEE 754 number itself, big-endian: every database gives its
    64 bits back, while decimal texts of it differ.
    """
    fields = (
        DOMAIN,
        str(entry.id).encode(),
        struct.pack(">d", entry.time_unix_s),
        _utf8(entry.actor),
        _utf8(entry.action),
        _utf8(entry.subject),
        _utf8(entry.reason),
        _utf8(entry.detail_json),
        _utf8(entry.prev_sha256),
    )
    digest = hashlib.sha256()
    for value in fields:
        digest.update(len(value).to_bytes(8, "big") + value)
    return digest.hexdigest()


def _utf8(text: str) -> bytes:
    # No stored text holds a lone surrogate, but a forged export can.
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of a log: who knows it knows the whole log before it."""

    id: int
    sha256: str

    def __str__(self) -> str:
        return f"{self.id}:{self.sha256}"


def parse_head(text: str) -> Head:
    """``ID:HASH``, as ``Head`` prints itself; raises ValueError."""
    number, _, digest = text.strip().partition(":")
    digest = digest.lower()
    if not (number.isascii() and number.isdecimal() and len(number) < 19):
        raise ValueError(f"{text[:80]!r} is no head: write ID:HASH as `opsd audit head` prints it")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{text[:80]!r} is no head: a hash has 64 hexadecimal digits")
    return Head(int(number), digest)


@dataclass(frozen=True, slots=True)
class AuditFacts:
    """What stays the same for as long as a daemon runs; every entry carries it."""

    version: str = ""  # of the package
    commit: str = ""  # git's, where it is known; ends in "+changes" for a changed checkout
    code_sha256: str = ""  # over the package's source files
    config_sha256: str = ""  # of the resolved configuration without secrets
    base_fingerprint: str = ""  # of the served model


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a log, and at which entry (0: with the log as a whole)."""

    entry_id: int
    message: str

    def __str__(self) -> str:
        return f"entry {self.entry_id}: {self.message}" if self.entry_id else self.message


@dataclass(slots=True)
class ChainVerifier:
    """Checks a log entry by entry, oldest first, in constant memory but for the heads to compare.

    ``anchors`` are heads that somebody kept outside of the log. Call ``feed`` for each entry, then
    ``finish``; ``problems`` holds what was found.
    """

    anchors: Iterable[Head] = ()
    checked: int = 0
    problems: list[Problem] = field(default_factory=list)
    num_problems: int = 0
    last: AuditEntry | None = None
    _expected: dict[int, set[str]] = field(default_factory=dict)
    _skipped: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        for head in self.anchors:
            if head.id == 0:  # of a log that was still empty
                continue
            self._expected.setdefault(head.id, set()).add(head.sha256)

    @property
    def head(self) -> Head:
        """The newest entry so far, as it says of itself."""
        return Head(self.last.id, self.last.entry_sha256) if self.last else Head(0, GENESIS)

    def feed(self, entry: AuditEntry) -> None:
        before = self.head
        self.checked += 1
        if entry_sha256(entry) != entry.entry_sha256:
            self.report(entry.id, "was edited: its content does not have the hash that it carries")
        if entry.id <= before.id:
            self.report(entry.id, f"stands after entry {before.id}: out of order, or there twice")
        elif entry.id > before.id + 1:
            self._skip(before.id + 1, entry.id - 1)
        if entry.prev_sha256 != before.sha256:
            self.report(entry.id, _broken_link(before))
        self._compare_anchor(entry)
        self.last = entry
        if entry.action == CHAINED:
            self._forgive(entry)

    def finish(self) -> None:
        """To be called after the last entry."""
        for problem in self._skipped:
            self.report(problem.entry_id, problem.message)
        last_id = self.head.id
        for number in sorted(number for number in self._expected if number <= last_id):
            self.report(number, "is missing although a head of it was kept")
        newest = max(self._expected, default=0)
        if newest > last_id:
            self.report(
                newest,
                f"is missing although a head of it was kept: the log ends at {last_id}, "
                f"{_range(last_id + 1, newest)} deleted",
            )

    def report(self, entry_id: int, message: str) -> None:
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(entry_id, message))

    def _compare_anchor(self, entry: AuditEntry) -> None:
        known = self._expected.pop(entry.id, None)
        for sha256 in sorted(known or ()):
            if sha256 != entry.entry_sha256:
                self.report(
                    entry.id,
                    f"is not the one whose head was kept ({sha256[:16]}…): the log was "
                    "rewritten up to here, or restored from an older copy and continued",
                )

    def _skip(self, first: int, last: int) -> None:
        message = f"{_range(first, last)} missing"
        self._skipped.append(Problem(last + 1, f"comes too early: {message}"))

    def _forgive(self, entry: AuditEntry) -> None:
        """A log that was chained later may have skipped ids; it says how many entries it had."""
        try:
            chained = json.loads(entry.detail_json)["entries"]
        except (ValueError, LookupError, TypeError):
            chained = None
        if chained == self.checked - 1:
            self._skipped.clear()


def _broken_link(before: Head) -> str:
    if before.id == 0:
        return "is not the first entry of a log: the entries before it are missing"
    return (
        f"does not follow entry {before.id}: its prev_sha256 is not that entry's hash, so one of "
        "the two was edited, or entries between them were deleted, inserted or put in another order"
    )


def _range(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"


def entry_to_json(entry: AuditEntry) -> dict[str, Any]:
    """As a line of an export holds it."""
    return {
        "id": entry.id,
        "time_unix_s": entry.time_unix_s,
        "actor": entry.actor,
        "action": entry.action,
        "subject": entry.subject,
        "reason": entry.reason,
        "detail_json": entry.detail_json,
        "prev_sha256": entry.prev_sha256,
        "entry_sha256": entry.entry_sha256,
    }


def entry_from_json(fields: Mapping[str, Any]) -> AuditEntry:
    """The other way; raises ValueError for what is no entry."""
    texts = ("actor", "action", "subject", "reason", "detail_json", "prev_sha256", "entry_sha256")
    if set(fields) != {"id", "time_unix_s", *texts}:
        raise ValueError(f"not the fields of an entry: {', '.join(sorted(fields))[:200]}")
    if type(fields["id"]) is not int or not 0 < fields["id"] < 1 << 63:
        raise ValueError(f"id: {fields['id']!r} is no entry's number")
    time_unix_s = fields["time_unix_s"]
    if type(time_unix_s) not in (int, float) or not math.isfinite(time_unix_s):
        raise ValueError(f"time_unix_s: {time_unix_s!r} is no time")
    for name in texts:
        if type(fields[name]) is not str:
            raise ValueError(f"{name}: {fields[name]!r} is no text")
    return AuditEntry(**{**fields, "time_unix_s": float(time_unix_s)})
