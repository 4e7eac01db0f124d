"""Versions of held-out suites, and the gates that used them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, func, insert, select, update

from opsd.daemon.errors import ConflictError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import Area, chunks, one, write_audit
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.suites import (
    QueryUse,
    SuiteSettings,
    SuiteSource,
    SuiteState,
    SuiteVersion,
)

_suites = tables.suites
_prompts = tables.suite_prompts
_uses = tables.suite_uses


class SuiteArea(Area):
    """Implements ``SuiteStore``."""

    def put_suite(
        self, suite: SuiteVersion, prompt_keys: Sequence[str], *, fresh_share: float
    ) -> SuiteVersion:
        def work(connection: Connection) -> SuiteVersion:
            active = one(connection, _suites, *_active(suite.name))
            if active is not None and active["source"] != suite.source.value:
                raise ConflictError(_declared_elsewhere(suite, SuiteSource(active["source"])))
            known = one(connection, _suites, *_version(suite.name, suite.version))
            if known is not None and known["sha256"] != suite.sha256:
                raise ConflictError(
                    f"version {suite.version!r} of suite {suite.name!r} has other items already: "
                    "give these a version of their own"
                )
            if known is not None and _is_same(connection, known, suite):
                return _suite(connection, known)
            now = self._clock()
            _retire(connection, suite.name, now, besides=suite.version)
            if known is None:
                _insert(connection, suite, set(prompt_keys), now, fresh_share)
            else:
                connection.execute(
                    update(_suites)
                    .where(*_version(suite.name, suite.version))
                    .values(**_settings(suite), state=SuiteState.ACTIVE.value, retired_unix_s=0.0)
                )
            stored = _load(connection, suite.name, suite.version)
            self._note(connection, "suite.add", stored, suite.actor, suite.reason)
            return stored

        return self._database.write(work, name="suite")

    def retire_suite(self, name: str, *, actor: str, reason: str) -> SuiteVersion:
        def work(connection: Connection) -> SuiteVersion:
            active = one(connection, _suites, *_active(name))
            if active is None:
                raise NotFoundError(f"no active suite {name[:80]!r}: `opsd suites list` names them")
            _retire(connection, name, self._clock())
            stored = _load(connection, name, active["version"])
            self._note(connection, "suite.remove", stored, actor, reason)
            return stored

        return self._database.write(work)

    def get_suite(self, name: str, version: str = "") -> SuiteVersion:
        return self._database.read(lambda connection: _find(connection, name, version))

    def list_suites(self, *, retired: bool = False) -> list[SuiteVersion]:
        query = select(_suites).order_by(_suites.c.name, _suites.c.seq.desc())
        if not retired:
            query = query.where(_suites.c.state == SuiteState.ACTIVE.value)

        def work(connection: Connection) -> list[SuiteVersion]:
            return [_suite(connection, row) for row in connection.execute(query).mappings().all()]

        return self._database.read(work)

    def use_suite(self, name: str, version: str, run_id: str) -> QueryUse:
        def work(connection: Connection) -> QueryUse:
            row = one(connection, _suites, *_version(name, version))
            if row is None:
                raise NotFoundError(f"no version {version[:80]!r} of suite {name[:80]!r}")
            used = _used(connection, row)
            where = (_uses.c.name == name, _uses.c.version == version, _uses.c.run_id == run_id)
            if one(connection, _uses, *where) is not None:
                return QueryUse(True, used, row["budget"])
            if row["budget"] and used >= row["budget"]:
                return QueryUse(False, used, row["budget"])
            connection.execute(
                insert(_uses).values(
                    name=name, version=version, run_id=run_id, time_unix_s=self._clock()
                )
            )
            return QueryUse(True, used + 1, row["budget"])

        return self._database.write(work, name="suite-use")

    def _note(
        self, connection: Connection, action: str, suite: SuiteVersion, actor: str, reason: str
    ) -> None:
        detail = {
            "version": suite.version,
            "sha256": suite.sha256,
            "num_items": suite.num_items,
            "source": suite.source.value,
            "fresh_share": suite.fresh_share,
            "queries_used": suite.queries_used,
            **asdict(suite.settings),
        }
        write_audit(
            connection,
            self._clock(),
            actor=actor,
            action=action,
            subject=suite.name,
            reason=reason,
            detail_json=json.dumps(detail, sort_keys=True),
        )


def _active(name: str) -> tuple[ColumnElement[bool], ...]:
    return (_suites.c.name == name, _suites.c.state == SuiteState.ACTIVE.value)


def _version(name: str, version: str) -> tuple[ColumnElement[bool], ...]:
    return (_suites.c.name == name, _suites.c.version == version)


def _declared_elsewhere(suite: SuiteVersion, source: SuiteSource) -> str:
    if source is SuiteSource.CONFIG:
        return (
            f"suite {suite.name!r} is declared in the configuration: change it in [[gate.suites]], "
            "or choose another name"
        )
    return (
        f"suite {suite.name!r} was added while the daemon ran: rename it in [[gate.suites]], or "
        "start without it and remove the other with `opsd suites remove`"
    )


def _is_same(connection: Connection, row: RowMapping, suite: SuiteVersion) -> bool:
    stored = _suite(connection, row)
    return (
        stored.state is SuiteState.ACTIVE
        and stored.settings == suite.settings
        and stored.description == suite.description
        and stored.path == suite.path
    )


def _retire(connection: Connection, name: str, now: float, besides: str = "") -> None:
    connection.execute(
        update(_suites)
        .where(*_active(name), _suites.c.version != besides)
        .values(state=SuiteState.RETIRED.value, retired_unix_s=now)
    )


def _insert(
    connection: Connection, suite: SuiteVersion, keys: set[str], now: float, fresh_share: float
) -> None:
    stale: set[str] = set()
    versions: set[tuple[str, str]] = set()
    for some in chunks(keys):
        query = select(_prompts).where(_prompts.c.prompt_key.in_(some))
        for row in connection.execute(query).mappings():
            stale.add(row["prompt_key"])
            versions.add((row["name"], row["version"]))
    fresh = 1.0 - len(stale) / len(keys)
    carried = 0
    if fresh < fresh_share:
        rows = (one(connection, _suites, *_version(*version)) for version in versions)
        carried = max(_used(connection, row) for row in rows if row is not None)
    connection.execute(
        insert(_suites).values(
            **_settings(suite),
            name=suite.name,
            version=suite.version,
            sha256=suite.sha256,
            num_items=suite.num_items,
            source=suite.source.value,
            state=SuiteState.ACTIVE.value,
            created_unix_s=now,
            retired_unix_s=0.0,
            fresh_share=fresh,
            queries_carried=carried,
        )
    )
    for some in chunks(keys):
        connection.execute(
            insert(_prompts),
            [{"prompt_key": key, "name": suite.name, "version": suite.version} for key in some],
        )


def _settings(suite: SuiteVersion) -> dict[str, Any]:
    """What the same version may be given anew."""
    settings = suite.settings
    return {
        "role": settings.role.value,
        "margin": settings.margin,
        "stratum_margin": settings.stratum_margin,
        "sealed": settings.sealed,
        "budget": settings.budget,
        "samples": settings.samples,
        "actor": suite.actor,
        "reason": suite.reason,
        "path": suite.path,
        "description": suite.description,
    }


def _find(connection: Connection, name: str, version: str) -> SuiteVersion:
    query = select(_suites).where(_suites.c.name == name)
    if version:
        query = query.where(_suites.c.version == version)
    # "active" sorts before "retired".
    query = query.order_by(_suites.c.state, _suites.c.seq.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    if row is None:
        which = f"version {version[:80]!r} of suite" if version else "suite"
        raise NotFoundError(f"no {which} {name[:80]!r}: `opsd suites list --all` names them")
    return _suite(connection, row)


def _load(connection: Connection, name: str, version: str) -> SuiteVersion:
    row = one(connection, _suites, *_version(name, version))
    assert row is not None, "it was written in this transaction"
    return _suite(connection, row)


def _used(connection: Connection, row: RowMapping) -> int:
    own = connection.execute(
        select(func.count())
        .select_from(_uses)
        .where(_uses.c.name == row["name"], _uses.c.version == row["version"])
    ).scalar_one()
    return int(row["queries_carried"] + own)


def _suite(connection: Connection, row: RowMapping) -> SuiteVersion:
    return SuiteVersion(
        settings=SuiteSettings(
            name=row["name"],
            role=SuiteRole(row["role"]),
            margin=row["margin"],
            stratum_margin=row["stratum_margin"],
            sealed=row["sealed"],
            budget=row["budget"],
            samples=row["samples"],
        ),
        version=row["version"],
        sha256=row["sha256"],
        num_items=row["num_items"],
        source=SuiteSource(row["source"]),
        actor=row["actor"],
        reason=row["reason"],
        path=row["path"],
        description=row["description"],
        state=SuiteState(row["state"]),
        created_unix_s=row["created_unix_s"],
        retired_unix_s=row["retired_unix_s"],
        fresh_share=row["fresh_share"],
        queries_carried=row["queries_carried"],
        queries_used=_used(connection, row),
    )
