"""Gate reports."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, insert, or_, select

from opsd.daemon.errors import DamagedError, InvalidInputError, NotFoundError
from opsd.daemon.store import tables
from opsd.daemon.store.area import MIN_PREFIX_CHARS, Area, write_audit
from opsd.daemon.types.gate import (
    CheckKind,
    CheckReport,
    GateReport,
    GateVerdict,
    StratumReport,
    SuiteReport,
    SuiteRole,
)

_reports = tables.gate_reports


class GateArea(Area):
    """Implements ``GateStore``."""

    def save_gate(self, report: GateReport) -> None:
        """The same report again is a no-op."""
        self._database.write(lambda connection: write_report(connection, report, self._clock()))

    def get_gate(self, key: str) -> GateReport:
        text = self.get_gate_text(key)
        try:
            return _report(text)
        except (ValueError, TypeError, KeyError) as error:
            raise DamagedError(
                f"the stored gate report of {key[:80]} is damaged: {error}"
            ) from error

    def get_gate_text(self, key: str) -> str:
        return self._database.read(lambda connection: _newest(connection, key))


def write_report(connection: Connection, report: GateReport, now_unix_s: float) -> None:
    """With its audit entry, unless it is there already."""
    text = report_text(report)
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
    write_audit(
        connection,
        now_unix_s,
        actor="gate",
        action="gate.verdict",
        subject=report.candidate,
        reason=report.explanation,  # which begins with the verdict
        detail_json=json.dumps({"run_id": report.run_id, "incumbent": report.incumbent}),
    )


def report_text(report: GateReport) -> str:
    """A report as it is stored; the same report always gives the same text."""
    return json.dumps(asdict(report), sort_keys=True)


def _newest(connection: Connection, key: str) -> str:
    query = select(_reports).order_by(_reports.c.seq.desc()).limit(1)
    exact = query.where(or_(_reports.c.run_id == key, _reports.c.candidate == key))
    row = connection.execute(exact).mappings().one_or_none()
    if row is not None:
        return str(row["report_json"])
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
            return str(row["report_json"])
    raise NotFoundError(f"no gate report of a run or adapter {key[:80]!r}")


def _report(text: str) -> GateReport:
    fields: dict[str, Any] = json.loads(text)
    fields["verdict"] = GateVerdict(fields["verdict"])
    fields["suites"] = tuple(_suite(suite) for suite in fields["suites"])
    # Reports from before there were checks have none.
    fields["checks"] = tuple(_check(check) for check in fields.get("checks", ()))
    return GateReport(**fields)


def _suite(fields: dict[str, Any]) -> SuiteReport:
    return SuiteReport(
        **{
            **fields,
            "role": SuiteRole(fields["role"]),
            "verdict": GateVerdict(fields["verdict"]),
            "strata": tuple(_stratum(stratum) for stratum in fields["strata"]),
        }
    )


def _stratum(fields: dict[str, Any]) -> StratumReport:
    return StratumReport(**{**fields, "verdict": _judged(fields.get("verdict"))})


def _check(fields: dict[str, Any]) -> CheckReport:
    return CheckReport(
        **{**fields, "kind": CheckKind(fields["kind"]), "verdict": _judged(fields["verdict"])}
    )


def _judged(verdict: str | None) -> GateVerdict | None:
    return None if verdict is None else GateVerdict(verdict)
