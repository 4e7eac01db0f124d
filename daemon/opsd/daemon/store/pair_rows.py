"""Between rows of ``pairs`` and ``Pair``."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, select

from opsd.daemon.store import tables
from opsd.daemon.store.area import chunks
from opsd.daemon.types.pair_sets import PairFilter
from opsd.daemon.types.pairs import (
    Origin,
    Pair,
    PairInput,
    PairStatus,
    Verdict,
    VerdictKind,
)
from opsd.daemon.types.text import normalise_prompt

_pairs = tables.pairs


def pair_values(pair: Pair, group_id: int, has_bands: bool) -> dict[str, Any]:
    given, verdict = pair.input, pair.verdict
    return {
        "id": given.id,
        "content_sha256": pair.content_sha256,
        "prompt_key": pair.prompt_key,
        "prompt": given.prompt,
        "solution": given.solution,
        "verifier": given.verifier,
        "reference": given.reference,
        "source": given.source,
        "stratum": given.stratum,
        "status": pair.status.value,
        "verdict_kind": verdict.kind.value,
        "verdict_verifier": verdict.verifier,
        "verdict_evidence": verdict.evidence,
        "verdict_duration_s": verdict.duration_s,
        "submitter": pair.submitter,
        "created_unix_s": pair.created_unix_s,
        "origin": pair.origin.value,
        "quarantine_reason": pair.quarantine_reason,
        # Not to be guessed: who could, would choose which batches a pair gets into.
        "sample_key": secrets.randbits(63),
        "group_id": group_id,
        "size_bytes": size_bytes(pair),
        "has_bands": has_bands,
    }


def pair_of(row: RowMapping) -> Pair:
    return Pair(
        input=PairInput(
            id=row["id"],
            prompt=row["prompt"],
            solution=row["solution"],
            verifier=row["verifier"],
            reference=row["reference"],
            source=row["source"],
            stratum=row["stratum"],
        ),
        status=PairStatus(row["status"]),
        verdict=Verdict(
            kind=VerdictKind(row["verdict_kind"]),
            verifier=row["verdict_verifier"],
            evidence=row["verdict_evidence"],
            duration_s=row["verdict_duration_s"],
        ),
        submitter=row["submitter"],
        created_unix_s=row["created_unix_s"],
        content_sha256=row["content_sha256"],
        prompt_key=row["prompt_key"],
        origin=Origin(row["origin"]),
        quarantine_reason=row["quarantine_reason"],
    )


def size_bytes(pair: Pair) -> int:
    """What counts against a quota of bytes."""
    return input_bytes(pair.input)


def input_bytes(given: PairInput) -> int:
    return len(given.prompt.encode()) + len(given.solution.encode()) + len(given.reference.encode())


def where(given: PairFilter) -> list[ColumnElement[bool]]:
    """The conditions of a filter, but for its ids."""
    found: list[ColumnElement[bool]] = []
    if given.status is None:
        found.append(_pairs.c.status != PairStatus.PURGED.value)
    else:
        found.append(_pairs.c.status == given.status.value)
    if given.source:
        found.append(_pairs.c.source == given.source)
    if given.submitter:
        found.append(_pairs.c.submitter == given.submitter)
    if given.origin is not None:
        found.append(_pairs.c.origin == given.origin.value)
    return found


def next_seqs(connection: Connection, wanted: PairFilter, after_seq: int, limit: int) -> list[int]:
    """The seqs of the next pairs that match, oldest first."""
    base = select(_pairs.c.seq).where(*where(wanted), _pairs.c.seq > after_seq)
    if not wanted.ids:
        return list(connection.execute(base.order_by(_pairs.c.seq).limit(limit)).scalars())
    seqs: list[int] = []
    for some in chunks(dict.fromkeys(wanted.ids)):
        seqs += connection.execute(base.where(_pairs.c.id.in_(some))).scalars()
    return sorted(seqs)[:limit]


def stored_keys(band_keys: tuple[int, ...], given: PairInput) -> tuple[int, ...]:
    """The prompt's band keys, each mixed with the answer.

    In a set made from a template nearly all prompts share their bands; candidates for being
    near-duplicates must have the same verifier and answer too, so only those are ever met.
    """
    answer = f"{given.verifier}\n{normalise_prompt(given.reference)}"
    mask = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:8], "big", signed=True)
    return tuple(dict.fromkeys(key ^ mask for key in band_keys))
