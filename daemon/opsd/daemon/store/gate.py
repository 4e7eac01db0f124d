"""Gate reports, and the outcomes of an evaluation that is under way."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from opsd.daemon.errors import InvalidInputError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import MIN_PREFIX_CHARS, Area, one
from opsd.daemon.types.gate import (
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)

_reports = tables.gate_reports
_outcomes = tables.gate_outcomes


class GateArea(Area):
    """Implements ``GateStore``."""

    def save_gate(self, report: GateReport) -> None:
        """The same report again is a no-op."""
        self._database.write(lambda connection: write_report(connection, report))

    def get_gate(self, key: str) -> GateReport:
        return self._database.read(lambda connection: _newest(connection, key))

    def save_gate_outcome(
        self, run_id: str, adapter: str, suite: str, item_id: str, solved: bool | None, tokens: int
    ) -> None:
        where = (
            _outcomes.c.run_id == run_id,
            _outcomes.c.adapter == adapter,
            _outcomes.c.suite == suite,
            _outcomes.c.item_id == item_id,
        )

        def work(connection: Connection) -> None:
            if one(connection, _outcomes, *where) is not None:
                connection.execute(
                    update(_outcomes).where(*where).values(solved=solved, tokens=tokens)
                )
                return
            connection.execute(
                insert(_outcomes).values(
                    run_id=run_id,
                    adapter=adapter,
                    suite=suite,
                    item_id=item_id,
                    solved=solved,
                    tokens=tokens,
                )
            )

        self._database.write(work)

    def gate_outcomes(self, run_id: str) -> dict[tuple[str, str, str], tuple[bool | None, int]]:
        query = select(_outcomes).where(_outcomes.c.run_id == run_id)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return {
            (row["adapter"], row["suite"], row["item_id"]): (row["solved"], row["tokens"])
            for row in rows
        }


def write_report(connection: Connection, report: GateReport) -> None:
    """Unless it is there already."""
    text = json.dumps(asdict(report), sort_keys=True)
    newest = connection.execute(
        select(_reports.c.report_json)
        .where(_reports.c.run_id == report.run_id)
        .order_by(_reports.c.seq.desc())
        .limit(1)
    ).scalar()
    if newest == text:
        return
    connection.execute(
        insert(_reports).values(
            run_id=report.run_id,
            candidate=report.candidate,
            verdict=report.verdict.value,
            report_json=text,
        )
    )


def _newest(connection: Connection, key: str) -> GateReport:
    query = select(_reports).order_by(_reports.c.seq.desc()).limit(1)
    exact = query.where(or_(_reports.c.run_id == key, _reports.c.candidate == key))
    row = connection.execute(exact).mappings().one_or_none()
    if row is not None:
        return _report(row["report_json"])
    if len(key) >= MIN_PREFIX_CHARS:
        begins = or_(
            _reports.c.run_id.startswith(key, autoescape=True),
            _reports.c.candidate.startswith(key, autoescape=True),
            _reports.c.candidate.startswith("opsd-" + key, autoescape=True),
        )
        runs = connection.execute(
            select(_reports.c.run_id).where(begins).distinct().limit(2)
        ).scalars()
        found = list(runs)
        if len(found) > 1:
            raise InvalidInputError(
                f"several gate reports match {key!r}: give more characters, or the run's id"
            )
        if found:
            row = connection.execute(query.where(_reports.c.run_id == found[0])).mappings().one()
            return _report(row["report_json"])
    raise NotFoundError(f"no gate report of a run or adapter {key[:80]!r}")


def _report(text: str) -> GateReport:
    fields: dict[str, Any] = json.loads(text)
    fields["verdict"] = GateVerdict(fields["verdict"])
    fields["suites"] = tuple(_suite(suite) for suite in fields["suites"])
    return GateReport(**fields)


def _suite(fields: dict[str, Any]) -> SuiteReport:
    strata = tuple(StratumReport(**stratum) for stratum in fields["strata"])
    return SuiteReport(
        **{
            **fields,
            "role": SuiteRole(fields["role"]),
            "verdict": GateVerdict(fields["verdict"]),
            "strata": strata,
        }
    )
