"""A finished run, as the daemon tells of it, in the form that comparisons calculate with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opsd.daemon.cli.compare.ledger import Entry
from opsd.daemon.cli.compare.results import Outcome, Point, TeacherCheck, pool, weighted_mean
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import GateReport, Run, SuiteReport


def fetch_outcome(session: Session, entry: Entry) -> Outcome:
    """Raises CliError."""
    from opsd.v1.admin_pb2 import GetGateRequest, GetRunRequest

    with session.connect() as client:
        run = client.call(client.admin.GetRun, GetRunRequest(id=entry.run_id))
    report: GateReport | None = None
    try:
        with session.connect() as client:
            report = client.call(client.admin.GetGate, GetGateRequest(id=run.id))
    except CliError as error:
        # A run that failed before its evaluation has none.
        if error.code is not Exit.NOT_FOUND:
            raise
    return make_outcome(entry, run, report)


def make_outcome(entry: Entry, run: Run, report: GateReport | None) -> Outcome:
    from opsd.daemon.cli.words import run_state, verdict
    from opsd.v1 import admin_pb2 as pb

    suites = list(report.suites) if report is not None else []
    targets = [suite for suite in suites if suite.role == pb.SUITE_ROLE_TARGET]
    curve = pool(
        Point(point.step, point.generated_tokens, point.train_s, point.accuracy, point.n)
        for point in run.curve
    )
    check = run.teacher_check if run.HasField("teacher_check") else None
    return Outcome(
        method=entry.method,
        seed=entry.seed,
        run_id=run.id,
        state=run_state(run.state),
        verdict=verdict(report.verdict) if report is not None else "",
        error=run.error,
        before=weighted_mean((suite.incumbent_accuracy, suite.n) for suite in targets),
        after=weighted_mean((suite.candidate_accuracy, suite.n) for suite in targets),
        guards=_guards(suites),
        generated_tokens=run.generated_tokens,
        train_s=curve[-1].train_s if curve else None,
        curve=curve,
        teacher_check=TeacherCheck(check.accuracy_with, check.accuracy_without, check.passed)
        if check is not None
        else None,
    )


def _guards(suites: Iterable[SuiteReport]) -> dict[str, float]:
    from opsd.v1 import admin_pb2 as pb

    return {suite.name: suite.difference for suite in suites if suite.role == pb.SUITE_ROLE_GUARD}
