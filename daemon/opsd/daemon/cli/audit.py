"""`opsd audit`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    emit_json,
    print_table,
    to_dict,
    when,
)
from opsd.daemon.cli.paging import LimitOption, pages
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import AuditEntry, ListAuditResponse

app = typer.Typer(help="Who changed what, and why.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Who changed what, and why."""


@app.command("list")
def list_(
    context: typer.Context, limit: LimitOption = 50, output: OutputOption = Output.TABLE
) -> None:
    """List the audit log, newest first."""
    from opsd.v1.admin_pb2 import ListAuditRequest

    session: Session = context.obj
    with session.connect() as client:

        def fetch(size: int, token: str) -> ListAuditResponse:
            request = ListAuditRequest(page_size=size, page_token=token)
            return client.call(client.admin.ListAudit, request)

        entries: list[AuditEntry] = list(
            pages(fetch, lambda r: r.entries, lambda r: r.next_page_token, limit)
        )
    if output is Output.JSON:
        emit_json({"entries": [to_dict(entry) for entry in entries]})
        return
    print_table(
        ("id", "time", "actor", "action", "subject", "reason"),
        (
            (str(e.id), when(e.time_unix_s), e.actor, e.action, e.subject, brief(e.reason))
            for e in entries
        ),
        right=("id",),
    )
