"""`opsd adapters`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli import canary, pending
from opsd.daemon.cli.decisions import (
    ReasonOption,
    YesOption,
    confirm,
    may_ask,
    need_reason,
    print_change,
)
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    emit_json,
    mebibytes,
    print_fields,
    print_table,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import Adapter

app = typer.Typer(help="Adapters: look, approve, reject, roll back.", no_args_is_help=True)
app.add_typer(canary.app, name="canary")
pending.add_to(app)

NameArgument = Annotated[str, typer.Argument(help="An adapter's name; a unique prefix will do.")]


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
    """Vote for an adapter; the last vote needed lets it serve, under traffic, through a canary
    where promotion.steps asks for one."""
    from opsd.daemon.cli.words import verdict
    from opsd.v1.admin_pb2 import ApproveAdapterRequest

    need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        adapter = _get(client, name)
        gate = verdict(adapter.gate_verdict) or "not evaluated"
        confirm(f"Let {clean(adapter.name)} serve (gate: {gate})?", yes)
        change = client.call(
            client.admin.ApproveAdapter,
            ApproveAdapterRequest(
                name=adapter.name,
                reason=reason,
                actor=session.actor,
                override_inconclusive=override_inconclusive,
            ),
        )
    print_change(change, output)


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

    need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        adapter = _get(client, name)
        confirm(f"Reject {clean(adapter.name)} for good?", yes)
        request = RejectAdapterRequest(name=adapter.name, reason=reason, actor=session.actor)
        change = client.call(client.admin.RejectAdapter, request)
    print_change(change, output)


@app.command()
def rollback(
    context: typer.Context,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Change the incumbent back to the previous one, under traffic."""
    from opsd.v1.admin_pb2 import GetStatusRequest, RollbackRequest

    need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        if may_ask(yes):
            now = client.call(client.admin.GetStatus, GetStatusRequest())
            target = clean(now.previous) or "nothing: there is no previous one"
            confirm(f"Roll back from {clean(now.incumbent)} to {target}?", yes)
        request = RollbackRequest(reason=reason, actor=session.actor)
        change = client.call(client.admin.Rollback, request)
    print_change(change, output)


def _get(client: Client, name: str) -> Adapter:
    from opsd.v1.admin_pb2 import GetAdapterRequest

    return client.call(client.admin.GetAdapter, GetAdapterRequest(name=name))
