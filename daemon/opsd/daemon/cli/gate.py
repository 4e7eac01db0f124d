"""`opsd gate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    emit_json,
    percent,
    print_fields,
    print_table,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import GateReport, SuiteReport

app = typer.Typer(help="Held-out evaluations of candidates.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Held-out evaluations of candidates."""


@app.command()
def show(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="A run's id or an adapter's name; a prefix will do.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a gate's report: every suite with its numbers, and why."""
    session: Session = context.obj
    with session.connect() as client:
        report = _find(client, id)
    if output is Output.JSON:
        emit_json(report)
    else:
        print_report(report)


def _find(client: Client, id: str) -> GateReport:
    from opsd.v1 import admin_pb2 as pb

    # Runs and adapters are found by prefix; reports only by a full id.
    if id.startswith("opsd-"):
        full = client.call(client.admin.GetAdapter, pb.GetAdapterRequest(name=id)).name
    else:
        full = client.call(client.admin.GetRun, pb.GetRunRequest(id=id)).id
    return client.call(client.admin.GetGate, pb.GetGateRequest(id=full))


def print_report(report: GateReport) -> None:
    """For people."""
    from opsd.daemon.cli.words import verdict

    print_fields(
        [
            ("verdict", verdict(report.verdict).upper()),
            ("why", report.explanation),
            ("candidate", report.candidate),
            ("incumbent", report.incumbent),
            ("run", report.run_id),
            ("finished", when(report.finished_unix_s)),
        ]
    )
    print()
    _print_suites(report)
    for suite in report.suites:
        print(f"\n{clean(suite.name)}: {clean(suite.explanation)}")
        print(
            f"  solved only by the incumbent {suite.only_incumbent}, only by the candidate "
            f"{suite.only_candidate}; margin {percent(suite.margin)}; {suite.num_errors} errors; "
            f"tokens an answer {suite.incumbent_tokens_mean:.0f} before, "
            f"{suite.candidate_tokens_mean:.0f} after"
        )
        if suite.strata:
            _print_strata(suite)


def _print_suites(report: GateReport) -> None:
    from opsd.daemon.cli.words import suite_role, verdict

    print_table(
        ("suite", "role", "items", "before", "after", "change", "interval", "p", "verdict"),
        (
            (
                suite.name,
                suite_role(suite.role),
                str(suite.n),
                percent(suite.incumbent_accuracy),
                percent(suite.candidate_accuracy),
                percent(suite.difference, signed=True),
                f"{100 * suite.confidence:g} %: [{100 * suite.ci_low:+.1f}, "
                f"{100 * suite.ci_high:+.1f}]",
                f"{suite.p_value:.2g}",
                verdict(suite.verdict),
            )
            for suite in report.suites
        ),
        right=("items", "before", "after", "change", "interval", "p"),
    )


def _print_strata(suite: SuiteReport) -> None:
    print_table(
        ("  stratum", "items", "before", "after", "change"),
        (
            (
                f"  {stratum.stratum}",
                str(stratum.n),
                percent(stratum.incumbent_accuracy),
                percent(stratum.candidate_accuracy),
                percent(stratum.candidate_accuracy - stratum.incumbent_accuracy, signed=True),
            )
            for stratum in suite.strata
        ),
        right=("items", "before", "after", "change"),
    )
