"""`opsd gate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import Exit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    emit_json,
    percent,
    points,
    print_fields,
    print_table,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import CheckReport, GateReport, SuiteReport

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


@app.command()
def replay(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="A run's id or an adapter's name; a prefix will do.")],
    save: Annotated[
        Path | None, typer.Option(help="Write the inputs of the decision here, as JSON.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide again from the stored inputs; fails unless the same report comes out."""
    from opsd.v1 import admin_pb2 as pb

    session: Session = context.obj
    with session.connect() as client:
        request = pb.ReplayGateRequest(id=_full_id(client, id), with_inputs=save is not None)
        found = client.call(client.admin.ReplayGate, request)
    if save is not None:
        save.write_bytes(found.inputs)
        found.ClearField("inputs")
    if output is Output.JSON:
        emit_json(found)
    elif found.identical:
        print(f"the same report, byte for byte: {clean(found.replayed.explanation)}")
        print(f"inputs {found.replayed.gate_inputs_sha256}, rules version {found.rules_version}")
    else:
        print(f"not the same report: {clean(found.message)}")
    if not found.identical:
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)


@app.command()
def ledger(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show what each gate spent of the error allowed to all gates on the same held-out items."""
    from opsd.daemon.cli.words import suite_role
    from opsd.v1 import admin_pb2 as pb

    session: Session = context.obj
    with session.connect() as client:
        found = client.call(client.admin.GetLedger, pb.GetLedgerRequest())
    if output is Output.JSON:
        emit_json(found)
        return
    spent: dict[str, float] = {}
    rows = []
    for line in found.lines:
        spent[line.suite] = spent.get(line.suite, 0.0) + line.alpha
        is_target = line.role == pb.SUITE_ROLE_TARGET
        rows.append(
            (
                when(line.time_unix_s),
                clean(line.suite),
                suite_role(line.role),
                line.run_id[:8],
                str(line.gate_number),
                f"{line.alpha:.2g}" if is_target else "-",
                f"{spent[line.suite]:.2g} of {line.alpha_total:.2g}" if is_target else "-",
            )
        )
    print_table(
        ("time", "suite", "role", "run", "gate", "alpha", "spent"),
        rows,
        right=("gate", "alpha", "spent"),
    )


def _find(client: Client, id: str) -> GateReport:
    from opsd.v1 import admin_pb2 as pb

    return client.call(client.admin.GetGate, pb.GetGateRequest(id=_full_id(client, id)))


def _full_id(client: Client, id: str) -> str:
    from opsd.v1 import admin_pb2 as pb

    # Runs and adapters are found by prefix; reports only by a full id.
    if id.startswith("opsd-"):
        return client.call(client.admin.GetAdapter, pb.GetAdapterRequest(name=id)).name
    return client.call(client.admin.GetRun, pb.GetRunRequest(id=id)).id


def print_report(report: GateReport) -> None:
    """For people."""
    from opsd.daemon.cli.words import verdict
    from opsd.v1 import admin_pb2 as pb

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
    if report.checks:
        print()
        _print_checks(report)
        print()
        for check in report.checks:
            if check.verdict != pb.GATE_VERDICT_PASS:
                print(clean(check.explanation))
    for suite in report.suites:
        print(f"\n{clean(suite.explanation)}")
        if suite.sealed:
            continue
        print(
            f"  solved only by the incumbent {suite.only_incumbent}, only by the candidate "
            f"{suite.only_candidate}; margin {100 * suite.margin:.3g} points; "
            f"{suite.num_errors} errors; tokens an answer "
            f"{suite.incumbent_tokens_mean:.0f} before, {suite.candidate_tokens_mean:.0f} after"
        )
        if suite.strata:
            _print_strata(suite)


def _print_checks(report: GateReport) -> None:
    from opsd.daemon.cli.words import verdict
    from opsd.v1 import admin_pb2 as pb

    def value(check: CheckReport, number: float) -> str:
        if check.kind == pb.CHECK_KIND_RATIO:
            return f"×{number:.2f}"
        if check.kind == pb.CHECK_KIND_DIFFERENCE:
            return f"{points(number)} points"
        return f"{number:.3g}"

    def limits(check: CheckReport) -> str:
        ends = [
            value(check, getattr(check, name)) for name in ("low", "high") if check.HasField(name)
        ]
        return " … ".join(ends)

    print_table(
        ("check", "against", "answers", "move", "interval", "limit", "verdict"),
        (
            (
                check.name,
                check.against,
                str(check.n),
                value(check, check.estimate) if check.n else "-",
                f"[{value(check, check.ci_low)}, {value(check, check.ci_high)}]"
                if check.n
                else "-",
                limits(check) or "-",
                verdict(check.verdict) if check.verdict else "not judged",
            )
            for check in report.checks
        ),
        right=("answers", "move", "interval", "limit"),
    )


def _print_suites(report: GateReport) -> None:
    from opsd.daemon.cli.words import suite_role, verdict

    print_table(
        ("suite", "role", "items", "before", "after", "points", "interval", "p", "verdict"),
        (
            (
                suite.name,
                suite_role(suite.role),
                *(("sealed", "-", "-", "-", "-", "-") if suite.sealed else _numbers(suite)),
                verdict(suite.verdict),
            )
            for suite in report.suites
        ),
        right=("items", "before", "after", "points", "interval", "p"),
    )


def _numbers(suite: SuiteReport) -> tuple[str, ...]:
    return (
        str(suite.n),
        percent(suite.incumbent_accuracy),
        percent(suite.candidate_accuracy),
        points(suite.difference),
        f"{100 * suite.confidence:.3g} %: [{100 * suite.ci_low:+.1f}, {100 * suite.ci_high:+.1f}]",
        f"{suite.p_value:.2g}",
    )


def _print_strata(suite: SuiteReport) -> None:
    print_table(
        ("  stratum", "items", "before", "after", "points"),
        (
            (
                f"  {stratum.stratum}",
                str(stratum.n),
                percent(stratum.incumbent_accuracy),
                percent(stratum.candidate_accuracy),
                points(stratum.candidate_accuracy - stratum.incumbent_accuracy),
            )
            for stratum in suite.strata
        ),
        right=("items", "before", "after", "points"),
    )
