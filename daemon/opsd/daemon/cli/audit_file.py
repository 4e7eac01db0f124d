"""The audit log as a file: written from a daemon, checked without one.

One JSON object a line: the entries, oldest first, then ``{"head": ENVELOPE}`` for each signed head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.types.adapters import AuditEntry
from opsd.daemon.types.audit import (
    ChainVerifier,
    Head,
    Problem,
    entry_from_json,
    entry_to_json,
)

if TYPE_CHECKING:
    from opsd.daemon.types.signatures import KeyRing
    from opsd.v1 import admin_pb2

_PROGRESS_EVERY = 5000
_HEAD_LINE = b'{"head":'


def entry_of(message: admin_pb2.AuditEntry) -> AuditEntry:
    return AuditEntry(
        id=message.id,
        time_unix_s=message.time_unix_s,
        actor=message.actor,
        action=message.action,
        subject=message.subject,
        reason=message.reason,
        detail_json=message.detail_json,
        prev_sha256=message.prev_sha256,
        entry_sha256=message.entry_sha256,
    )


def write_export(batches: Iterable[admin_pb2.AuditBatch], file: BinaryIO) -> tuple[int, int]:
    """Writes what a daemon streams; (entries, signed heads)."""
    entries = heads = 0
    for batch in batches:
        for message in batch.entries:
            file.write(_line(entry_to_json(entry_of(message))))
            entries += 1
        for envelope in batch.heads:
            file.write(_line({"head": json.loads(envelope)}))
            heads += 1
    return entries, heads


def _line(value: dict[str, Any]) -> bytes:
    # ASCII escapes keep line separators such as U+2028 inside their line for every reader.
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def verify_export(
    path: Path,
    *,
    trusted: KeyRing | None,
    expected: Head | None,
    on_progress: Callable[[int], None] = lambda checked: None,
) -> tuple[ChainVerifier, int]:
    """Checks an export; returns the finished chain and the number of heads it was compared with.

    ``trusted``: the keys whose heads count, one of which must cover the newest entry; None: heads
    are compared without their signatures.
    """
    try:
        with path.open("rb") as file:
            heads, problems = _heads(file, trusted)
            chain = ChainVerifier([*heads, *([expected] if expected else [])])
            for problem in problems:
                chain.report(problem.entry_id, problem.message)
            file.seek(0)
            _feed(chain, file, on_progress)
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", code=Exit.NOT_FOUND) from error
    chain.finish()
    if trusted is not None:
        covered = max((head.id for head in heads), default=0)
        if covered < chain.head.id:
            chain.report(
                covered + 1, "and those after it: no head that a trusted key signed covers them"
            )
    return chain, len(heads)


def _heads(file: BinaryIO, trusted: KeyRing | None) -> tuple[list[Head], list[Problem]]:
    from opsd.daemon.types.signatures import SignatureProblem, head_of

    heads: list[Head] = []
    problems: list[Problem] = []
    for number, line in enumerate(file, start=1):
        if not line.startswith(_HEAD_LINE):
            continue
        try:
            heads.append(head_of(json.dumps(json.loads(line)["head"]), trusted))
        except (SignatureProblem, ValueError) as error:
            problems.append(Problem(0, f"line {number}: a head that does not count: {error}"))
    return heads, problems


def _feed(chain: ChainVerifier, file: BinaryIO, on_progress: Callable[[int], None]) -> None:
    for number, entry in _entries(chain, file):
        chain.feed(entry)
        if number % _PROGRESS_EVERY == 0:
            on_progress(chain.checked)


def _entries(chain: ChainVerifier, file: BinaryIO) -> Iterator[tuple[int, AuditEntry]]:
    for number, line in enumerate(file, start=1):
        if line.startswith(_HEAD_LINE) or not line.strip():
            continue
        try:
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError(f"a {type(fields).__name__}, not an object")
            entry = entry_from_json(fields)
        except (ValueError, RecursionError) as error:
            chain.report(0, f"line {number} is no entry: {error}")
            continue
        yield number, entry
