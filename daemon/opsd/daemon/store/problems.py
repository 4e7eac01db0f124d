"""Problems for the model to attempt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    bindparam,
    case,
    func,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.dml import ReturningInsert

from opsd.daemon.errors import NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.api import Page
from opsd.daemon.store.area import Area, one, page
from opsd.daemon.types.pairs import Origin
from opsd.daemon.types.problems import (
    AddProblemKind,
    AddProblemResult,
    Answerable,
    Problem,
    ProblemInput,
    ProblemState,
    Round,
)

_problems = tables.problems

_INSERT: dict[str, ReturningInsert[tuple[int]]] = {
    "sqlite": sqlite.insert(_problems).on_conflict_do_nothing().returning(_problems.c.seq),
    "postgresql": postgresql.insert(_problems).on_conflict_do_nothing().returning(_problems.c.seq),
}
_SAME = select(_problems).where(
    or_(
        _problems.c.id == bindparam("given_id"),
        _problems.c.content_sha256 == bindparam("given_sha256"),
    )
)


class ProblemArea(Area):
    """Implements ``ProblemStore``."""

    def add_problem(self, problem: Problem) -> AddProblemResult:
        return self._database.write(lambda connection: _add(connection, problem), name="problem")

    def get_problem(self, problem_id: str) -> Problem:
        def work(connection: Connection) -> Problem:
            row = one(connection, _problems, _problems.c.id == problem_id)
            if row is None:
                raise NotFoundError(f"no problem {problem_id[:80]!r}")
            return _problem(row)

        return self._database.read(work)

    def list_problems(
        self,
        *,
        limit: int,
        token: str = "",
        state: ProblemState | None = None,
        source: str = "",
    ) -> Page[Problem]:
        where = _filter(state, source)
        return self._database.read(
            lambda connection: page(
                connection, _problems, "seq", _problem, limit=limit, token=token, where=where
            )
        )

    def problems_after(
        self, seq: int, *, limit: int, state: ProblemState | None = None, source: str = ""
    ) -> list[Problem]:
        """Those stored after ``seq``, oldest first."""
        query = (
            select(_problems)
            .where(_problems.c.seq > seq, *_filter(state, source))
            .order_by(_problems.c.seq)
            .limit(limit)
        )
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_problem(row) for row in rows]

    def due_problems(
        self, answerable: Answerable, *, now_unix_s: float, limit: int
    ) -> list[Problem]:
        """Open ones whose next try is due: higher priority first, then older first."""
        query = (
            select(_problems)
            .where(
                _problems.c.answerable == answerable.value,
                _problems.c.state == ProblemState.OPEN.value,
                _problems.c.next_try_unix_s <= now_unix_s,
            )
            .order_by(_problems.c.priority.desc(), _problems.c.seq)
            .limit(limit)
        )
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [_problem(row) for row in rows]

    def count_open_problems(self) -> dict[Answerable, int]:
        query = (
            select(_problems.c.answerable, func.count())
            .where(_problems.c.state == ProblemState.OPEN.value)
            .group_by(_problems.c.answerable)
        )
        found = self._database.read(lambda connection: connection.execute(query).all())
        counts = {Answerable(name): count for name, count in found}
        return {answerable: counts.get(answerable, 0) for answerable in Answerable}

    def record_round(self, done: Round) -> Problem:
        """Adds a round of samples to its problem's counts and sets its state.

        A problem that is solved stays so. Raises NotFoundError.
        """
        solved = ProblemState.SOLVED.value
        is_solved = _problems.c.state == solved

        def work(connection: Connection) -> Problem:
            connection.execute(
                update(_problems)
                .where(_problems.c.id == done.problem_id)
                .values(
                    attempts=_problems.c.attempts + done.attempts,
                    solves=_problems.c.solves + done.solves,
                    tries=_problems.c.tries + 1,
                    state=case((is_solved, solved), else_=done.state.value),
                    pair_id=case((is_solved, _problems.c.pair_id), else_=done.pair_id),
                    note=done.note,
                    next_try_unix_s=done.next_try_unix_s,
                    updated_unix_s=self._clock(),
                )
            )
            row = one(connection, _problems, _problems.c.id == done.problem_id)
            if row is None:
                raise NotFoundError(f"no problem {done.problem_id[:80]!r}")
            return _problem(row)

        return self._database.write(work)

    def known_prompts(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` (types.text.prompt_key) that a pair or a problem has."""

        def work(connection: Connection) -> set[str]:
            found: set[str] = set()
            for table in (tables.pairs, _problems):
                query = select(table.c.prompt_key).where(table.c.prompt_key.in_(list(keys)))
                found.update(connection.execute(query).scalars())
            return found

        return self._database.read(work)


def answerable(problem: Problem) -> Answerable:
    """Who works on it."""
    if problem.input.reference:
        return Answerable.KNOWN
    if problem.origin is Origin.SELF_PLAY:
        return Answerable.SELF_POSED
    return Answerable.UNKNOWN


def _filter(state: ProblemState | None, source: str) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if state is not None:
        where.append(_problems.c.state == state.value)
    if source:
        where.append(_problems.c.source == source)
    return where


def _add(connection: Connection, problem: Problem) -> AddProblemResult:
    statement = _INSERT[connection.dialect.name]
    if connection.execute(statement, _values(problem)).scalar() is not None:
        return AddProblemResult(AddProblemKind.STORED, problem)
    same = {"given_id": problem.input.id, "given_sha256": problem.content_sha256}
    rows = [_problem(row) for row in connection.execute(_SAME, same).mappings()]
    for stored in rows:
        if stored.input.id == problem.input.id:
            if stored.content_sha256 == problem.content_sha256:
                return AddProblemResult(AddProblemKind.ALREADY_STORED, stored)
            return AddProblemResult(AddProblemKind.ID_CONFLICT, stored)
    assert rows, "an insert that met a conflict met a row"
    return AddProblemResult(AddProblemKind.DUPLICATE, rows[0])


def _values(problem: Problem) -> dict[str, Any]:
    given = problem.input
    return {
        "id": given.id,
        "content_sha256": problem.content_sha256,
        "prompt_key": problem.prompt_key,
        "prompt": given.prompt,
        "verifier": given.verifier,
        "reference": given.reference,
        "source": given.source,
        "stratum": given.stratum,
        "priority": given.priority,
        "origin": problem.origin.value,
        "parent_id": problem.parent_id,
        "answerable": answerable(problem).value,
        "submitter": problem.submitter,
        "state": problem.state.value,
        "attempts": problem.attempts,
        "solves": problem.solves,
        "tries": problem.tries,
        "next_try_unix_s": problem.next_try_unix_s,
        "pair_id": problem.pair_id,
        "note": problem.note,
        "created_unix_s": problem.created_unix_s,
        "updated_unix_s": problem.updated_unix_s or problem.created_unix_s,
    }


def _problem(row: RowMapping) -> Problem:
    return Problem(
        input=ProblemInput(
            id=row["id"],
            prompt=row["prompt"],
            verifier=row["verifier"],
            reference=row["reference"],
            source=row["source"],
            stratum=row["stratum"],
            priority=row["priority"],
        ),
        submitter=row["submitter"],
        created_unix_s=row["created_unix_s"],
        content_sha256=row["content_sha256"],
        prompt_key=row["prompt_key"],
        origin=Origin(row["origin"]),
        parent_id=row["parent_id"],
        state=ProblemState(row["state"]),
        attempts=row["attempts"],
        solves=row["solves"],
        tries=row["tries"],
        next_try_unix_s=row["next_try_unix_s"],
        pair_id=row["pair_id"],
        note=row["note"],
        updated_unix_s=row["updated_unix_s"],
        seq=row["seq"],
    )
