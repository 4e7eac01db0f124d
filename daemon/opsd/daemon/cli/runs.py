"""`opsd runs`."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli import token_audit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    clean,
    emit_json,
    percent,
    print_fields,
    print_table,
    say,
    to_dict,
    when,
)
from opsd.daemon.cli.overrides import parse_overrides
from opsd.daemon.cli.paging import LimitOption, pages
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import ListRunsResponse, Run

app = typer.Typer(help="Training runs.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(help="A run's id; a unique prefix will do.")]


@app.callback()
def _group() -> None:
    """Training runs."""


@app.command()
def trigger(
    context: typer.Context,
    reason: Annotated[str, typer.Option(help="Why; it goes into the run's history.")] = "",
    source: Annotated[str, typer.Option(help="Train on this source's pairs only.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a training key, e.g. optim.num_steps=50."
        ),
    ] = None,
    request_id: Annotated[
        str, typer.Option(help="The same id twice triggers one run; default: a new one.")
    ] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Then follow it.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Start a training run."""
    from opsd.v1.admin_pb2 import TriggerRunRequest

    overrides, overridden = parse_overrides(set_ or ())
    session: Session = context.obj
    request = TriggerRunRequest(
        reason=reason,
        actor=session.actor,
        source=source,
        request_id=request_id or str(uuid.uuid4()),
    )
    if overridden:
        request.overrides.CopyFrom(overrides)
        request.overridden.paths.extend(overridden)
    with session.connect() as client:
        run = client.call(client.admin.TriggerRun, request)
    if watch:
        from opsd.daemon.cli.watch import watch_run

        say(f"run {run.id} triggered")
        raise typer.Exit(watch_run(session, run.id, output))
    _print_one(run, output)


@app.command("list")
def list_(
    context: typer.Context, limit: LimitOption = 50, output: OutputOption = Output.TABLE
) -> None:
    """List runs, newest first."""
    from opsd.daemon.cli.words import run_state, verdict
    from opsd.v1.admin_pb2 import ListRunsRequest

    session: Session = context.obj
    with session.connect() as client:

        def fetch(size: int, token: str) -> ListRunsResponse:
            request = ListRunsRequest(page_size=size, page_token=token)
            return client.call(client.admin.ListRuns, request)

        found: list[Run] = list(pages(fetch, lambda r: r.runs, lambda r: r.next_page_token, limit))
    if output is Output.JSON:
        emit_json({"runs": [to_dict(run) for run in found]})
        return
    print_table(
        ("id", "state", "trigger", "pairs", "steps", "gate", "candidate", "created", "reason"),
        (
            (
                run.id,
                run_state(run.state),
                run.trigger,
                str(run.num_pairs),
                f"{run.step}/{run.num_steps}",
                verdict(run.gate_verdict) or "-",
                run.candidate or "-",
                when(run.created_unix_s),
                brief(run.error or run.reason, 40),
            )
            for run in found
        ),
        right=("pairs", "steps"),
    )


@app.command()
def get(context: typer.Context, id: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one run."""
    from opsd.v1.admin_pb2 import GetRunRequest

    session: Session = context.obj
    with session.connect() as client:
        run = client.call(client.admin.GetRun, GetRunRequest(id=id))
    _print_one(run, output)


@app.command()
def watch(context: typer.Context, id: IdArgument, output: OutputOption = Output.TABLE) -> None:
    """Follow a run until it waits for a person or is over; the exit code is its outcome."""
    from opsd.daemon.cli.watch import watch_run

    raise typer.Exit(watch_run(context.obj, id, output))


@app.command()
def cancel(
    context: typer.Context,
    id: IdArgument,
    reason: Annotated[str, typer.Option(help="Why; it goes into the run's history.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Cancel a run that is not over."""
    from opsd.v1.admin_pb2 import CancelRunRequest, GetRunRequest

    session: Session = context.obj
    with session.connect() as client:
        full = client.call(client.admin.GetRun, GetRunRequest(id=id)).id
        request = CancelRunRequest(id=full, reason=reason, actor=session.actor)
        run = client.call(client.admin.CancelRun, request)
    _print_one(run, output)


token_audit.add_to(app)


def _print_one(run: Run, output: Output) -> None:
    if output is Output.JSON:
        emit_json(run)
    else:
        print_run(run)


def _teacher(run: Run) -> str:
    """What the check before the first step found; empty where there was none."""
    if not run.HasField("teacher_check"):
        return ""
    found = run.teacher_check
    verdict = "passed" if found.passed else "refused"
    return (
        f"{verdict}: {percent(found.accuracy_with)} with its context, "
        f"{percent(found.accuracy_without)} without, on {found.num_problems} problems"
    )


def print_run(run: Run) -> None:
    """For people."""
    from opsd.daemon.cli.words import run_state, verdict

    metrics = run.metrics
    progress = f"{run.step} of {run.num_steps} steps" if run.num_steps else ""
    if run.step:
        progress += f", loss {metrics.loss:.4f}, divergence {metrics.divergence:.4f}"
        progress += f", {percent(metrics.epistemic_fraction)} words of doubt"
    print_fields(
        [
            ("run", run.id),
            ("state", run_state(run.state)),
            ("reason", run.reason),
            ("trigger", f"{run.trigger} by {run.actor}" if run.actor else run.trigger),
            ("created", when(run.created_unix_s)),
            ("updated", when(run.updated_unix_s)),
            ("pairs", str(run.num_pairs)),
            ("teacher", _teacher(run)),
            ("training", progress),
            ("tokens", f"{run.generated_tokens} generated" if run.generated_tokens else ""),
            ("evaluation", f"{run.eval_done} of {run.eval_total}" if run.eval_total else ""),
            ("candidate", run.candidate),
            ("gate", verdict(run.gate_verdict)),
            (
                "incumbent",
                f"{run.incumbent_at_start} at the start" if run.incumbent_at_start else "",
            ),
            ("directory", run.run_dir),
            ("error", run.error),
        ]
    )
    for change in run.history:
        print(f"  {when(change.time_unix_s)}  {run_state(change.state)}  {clean(change.reason)}")
    if run.log_tail:
        say(f"the end of the trainer's log:\n{clean(run.log_tail, keep_lines=True).rstrip()}")


def one_line(run: Run) -> str:
    """A run in a few words."""
    from opsd.daemon.cli.words import run_state

    steps = f", step {run.step} of {run.num_steps}" if run.num_steps else ""
    return f"{run.id} {run_state(run.state)}{steps}"
