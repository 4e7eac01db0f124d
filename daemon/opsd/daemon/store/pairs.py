"""Pairs and attempts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, chunks, one, page
from opsd.daemon.types.pairs import (
    AddPairKind,
    AddPairResult,
    Attempt,
    Pair,
    PairCounts,
    PairInput,
    PairStatus,
    Rating,
    Verdict,
    VerdictKind,
)

_pairs = tables.pairs
_attempts = tables.attempts

# Built once: for a statement that runs for every pair, putting it together costs more than running
# it. The constraints decide who was first, whoever else writes.
_INSERT_PAIR: dict[str, ReturningInsert[tuple[int]]] = {
    "sqlite": sqlite.insert(_pairs).on_conflict_do_nothing().returning(_pairs.c.seq),
    "postgresql": postgresql.insert(_pairs).on_conflict_do_nothing().returning(_pairs.c.seq),
}
_SAME_PAIR = select(_pairs).where(
    or_(
        _pairs.c.id == bindparam("given_id"),
        _pairs.c.content_sha256 == bindparam("given_sha256"),
    )
)


class PairArea(Area):
    """Implements ``PairStore``."""

    def add_pair(self, pair: Pair) -> AddPairResult:
        return self._database.write(lambda connection: _add_pair(connection, pair), name="pair")

    def get_pair(self, pair_id: str) -> Pair:
        def work(connection: Connection) -> Pair:
            row = one(connection, _pairs, _pairs.c.id == pair_id)
            if row is None:
                raise NotFoundError(f"no pair {pair_id[:80]!r}")
            return _pair(row)

        return self._database.read(work)

    def list_pairs(
        self,
        *,
        limit: int,
        token: str = "",
        status: PairStatus | None = None,
        source: str = "",
    ) -> Page[Pair]:
        where = _filter(status, source)
        return self._database.read(
            lambda connection: page(
                connection, _pairs, "seq", _pair, limit=limit, token=token, where=where
            )
        )

    def count_pairs(self) -> PairCounts:
        snapshots, held = tables.snapshots, tables.snapshot_pairs

        def work(connection: Connection) -> PairCounts:
            counted = connection.execute(
                select(_pairs.c.status, func.count()).group_by(_pairs.c.status)
            )
            by_status: dict[str, int] = {row[0]: row[1] for row in counted}
            newest = select(func.coalesce(func.max(snapshots.c.last_pair_seq), 0)).scalar_subquery()
            new = connection.execute(
                select(func.count())
                .select_from(_pairs)
                .where(
                    _pairs.c.status == PairStatus.VERIFIED.value,
                    _pairs.c.seq > newest,
                    ~select(held.c.pair_id).where(held.c.pair_id == _pairs.c.id).exists(),
                )
            ).scalar_one()
            return PairCounts(
                verified=by_status.get(PairStatus.VERIFIED.value, 0),
                unverified=by_status.get(PairStatus.UNVERIFIED.value, 0),
                new_since_last_run=new,
            )

        return self._database.read(work)

    def trainable_pairs(self, *, source: str = "", limit: int = 0) -> list[Pair]:
        query = select(_pairs).where(*_filter(PairStatus.VERIFIED, source))
        query = query.order_by(_pairs.c.seq.desc())
        if limit > 0:
            query = query.limit(limit)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_pair(row) for row in reversed(rows)]

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]:
        held = tables.snapshot_pairs

        def work(connection: Connection) -> set[str]:
            found: set[str] = set()
            for some in chunks(set(keys)):
                query = (
                    select(_pairs.c.prompt_key)
                    .join(held, held.c.pair_id == _pairs.c.id)
                    .where(_pairs.c.prompt_key.in_(some))
                    .distinct()
                )
                found.update(connection.execute(query).scalars())
            return found

        return self._database.read(work)

    def add_attempts(self, attempts: Sequence[Attempt]) -> None:
        """Attempts that are there already are left as they are."""

        def work(connection: Connection) -> None:
            for some in chunks({attempt.id: attempt for attempt in attempts}.values()):
                ids = [attempt.id for attempt in some]
                known = set(
                    connection.execute(
                        select(_attempts.c.id).where(_attempts.c.id.in_(ids))
                    ).scalars()
                )
                rows = [_attempt_values(attempt) for attempt in some if attempt.id not in known]
                if rows:
                    connection.execute(insert(_attempts), rows)

        if attempts:
            self._database.write(work)

    def get_attempt(self, attempt_id: str) -> Attempt:
        return self._database.read(lambda connection: _attempt(connection, attempt_id))

    def set_feedback(self, attempt_id: str, rating: Rating | None, comment: str) -> None:
        """What is not given (None, empty) stays as it was."""
        values: dict[str, Any] = {}
        if rating is not None:
            values["rating"] = rating.value
        if comment:
            values["comment"] = comment

        def work(connection: Connection) -> None:
            _attempt(connection, attempt_id)
            if values:
                connection.execute(
                    update(_attempts).where(_attempts.c.id == attempt_id).values(**values)
                )

        self._database.write(work)


def _filter(status: PairStatus | None, source: str) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if status is not None:
        where.append(_pairs.c.status == status.value)
    if source:
        where.append(_pairs.c.source == source)
    return where


def _add_pair(connection: Connection, pair: Pair) -> AddPairResult:
    statement = _INSERT_PAIR[connection.dialect.name]
    if connection.execute(statement, _pair_values(pair)).scalar() is not None:
        return AddPairResult(AddPairKind.STORED, pair)
    same = {"given_id": pair.input.id, "given_sha256": pair.content_sha256}
    rows = [_pair(row) for row in connection.execute(_SAME_PAIR, same).mappings()]
    for stored in rows:
        if stored.input.id == pair.input.id:
            if stored.content_sha256 == pair.content_sha256:
                return AddPairResult(AddPairKind.ALREADY_STORED, stored)
            return AddPairResult(AddPairKind.ID_CONFLICT, stored)
    assert rows, "an insert that met a conflict met a row"
    return AddPairResult(AddPairKind.DUPLICATE, rows[0])


def _pair_values(pair: Pair) -> dict[str, Any]:
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
    }


def _pair(row: RowMapping) -> Pair:
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
    )


def _attempt_values(attempt: Attempt) -> dict[str, Any]:
    return {
        "id": attempt.id,
        "request_id": attempt.request_id,
        "adapter": attempt.adapter,
        "prompt": attempt.prompt,
        "completion": attempt.completion,
        "completion_tokens": attempt.completion_tokens,
        "created_unix_s": attempt.created_unix_s,
        "rating": attempt.rating.value if attempt.rating is not None else None,
        "comment": attempt.comment,
    }


def _attempt(connection: Connection, attempt_id: str) -> Attempt:
    row = one(connection, _attempts, _attempts.c.id == attempt_id)
    if row is None:
        raise NotFoundError(f"no attempt {attempt_id[:80]!r}")
    return Attempt(
        id=row["id"],
        request_id=row["request_id"],
        adapter=row["adapter"],
        prompt=row["prompt"],
        completion=row["completion"],
        completion_tokens=row["completion_tokens"],
        created_unix_s=row["created_unix_s"],
        rating=Rating(row["rating"]) if row["rating"] is not None else None,
        comment=row["comment"],
    )
