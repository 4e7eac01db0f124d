"""`opsd adapters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    duration,
    emit_json,
    is_terminal,
    mebibytes,
    print_fields,
    print_table,
    say,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import Adapter, AdapterChange

app = typer.Typer(help="Adapters: look, approve, reject, roll back.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="An adapter's name; a unique prefix will do.")]
ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback()
def _group() -> None:
    """Adapters: look, approve, reject, roll back."""


@app.command("list")
def list_(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List adapters, newest first."""
    from opsd.daemon.cli.words import adapter_state, verdict
    from opsd.v1.admin_pb2 import ListAdaptersRequest

    session: Session = context.obj
    with session.connect() as client:
        response = client.call(client.admin.ListAdapters, ListAdaptersRequest())
    if output is Output.JSON:
        emit_json(response)
        return
    print_table(
        ("name", "state", "gate", "rank", "size", "run", "created"),
        (
            (
                adapter.name,
                adapter_state(adapter.state),
                verdict(adapter.gate_verdict) or "-",
                str(adapter.rank),
                mebibytes(adapter.size_bytes),
                adapter.run_id[:8],
                when(adapter.created_unix_s),
            )
            for adapter in response.adapters
        ),
        right=("rank", "size"),
    )


@app.command()
def show(context: typer.Context, name: NameArgument, output: OutputOption = Output.TABLE) -> None:
    """Show one adapter."""
    from opsd.daemon.cli.words import adapter_state, verdict

    session: Session = context.obj
    with session.connect() as client:
        adapter = _get(client, name)
    if output is Output.JSON:
        emit_json(adapter)
        return
    print_fields(
        [
            ("name", adapter.name),
            ("state", adapter_state(adapter.state)),
            ("gate", verdict(adapter.gate_verdict) or "not evaluated"),
            ("run", adapter.run_id),
            ("rank", f"{adapter.rank}, alpha {adapter.alpha:g}"),
            ("size", mebibytes(adapter.size_bytes)),
            ("created", when(adapter.created_unix_s)),
            ("path", adapter.path),
            ("sha256", adapter.sha256),
            ("model", adapter.model_fingerprint),
        ]
    )


@app.command()
def approve(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    override_inconclusive: Annotated[
        bool,
        typer.Option(
            "--override-inconclusive", help="Although the gate could not tell. A fail stays a fail."
        ),
    ] = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Let an adapter serve: it becomes the incumbent, under traffic."""
    from opsd.daemon.cli.words import verdict
    from opsd.v1.admin_pb2 import ApproveAdapterRequest

    _need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        adapter = _get(client, name)
        gate = verdict(adapter.gate_verdict) or "not evaluated"
        _confirm(f"Let {clean(adapter.name)} serve all traffic (gate: {gate})?", yes)
        change = client.call(
            client.admin.ApproveAdapter,
            ApproveAdapterRequest(
                name=adapter.name,
                reason=reason,
                actor=session.actor,
                override_inconclusive=override_inconclusive,
            ),
        )
    _print_change(change, output)


@app.command()
def reject(
    context: typer.Context,
    name: NameArgument,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Decide that a candidate will never serve."""
    from opsd.v1.admin_pb2 import RejectAdapterRequest

    _need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        adapter = _get(client, name)
        _confirm(f"Reject {clean(adapter.name)} for good?", yes)
        request = RejectAdapterRequest(name=adapter.name, reason=reason, actor=session.actor)
        change = client.call(client.admin.RejectAdapter, request)
    _print_change(change, output)


@app.command()
def rollback(
    context: typer.Context,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change the incumbent back to the previous one, under traffic."""
    from opsd.v1.admin_pb2 import GetStatusRequest, RollbackRequest

    _need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        if not yes and is_terminal():
            now = client.call(client.admin.GetStatus, GetStatusRequest())
            target = clean(now.previous) or "nothing: there is no previous one"
            _confirm(f"Roll back from {clean(now.incumbent)} to {target}?", yes)
        request = RollbackRequest(reason=reason, actor=session.actor)
        change = client.call(client.admin.Rollback, request)
    _print_change(change, output)


def _get(client: Client, name: str) -> Adapter:
    from opsd.v1.admin_pb2 import GetAdapterRequest

    return client.call(client.admin.GetAdapter, GetAdapterRequest(name=name))


def _need_reason(reason: str) -> None:
    if not reason.strip():
        raise CliError(
            "--reason is empty", hint="say why: it goes into the audit log", code=Exit.USAGE
        )


def _confirm(question: str, yes: bool) -> None:
    """Asks only where there is somebody to answer."""
    if yes or not is_terminal():
        return
    if not typer.confirm(question, err=True):
        raise CliError("declined: nothing has changed")


def _print_change(change: AdapterChange, output: Output) -> None:
    from opsd.daemon.cli.words import adapter_state

    if output is Output.JSON:
        emit_json(change)
        return
    adapter = change.adapter
    print_fields(
        [
            ("adapter", f"{adapter.name}, now {adapter_state(adapter.state)}"),
            ("incumbent", f"{change.incumbent} (epoch {change.epoch})"),
            ("previous", change.previous),
            ("audit", str(change.audit_id)),
            ("took", duration(change.swap_s)),
        ]
    )
    say(f"{clean(change.incumbent)} serves")
