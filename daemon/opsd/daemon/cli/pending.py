"""`opsd adapters pending`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    clean,
    duration,
    emit_json,
    print_table,
    say,
)
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import PendingCandidate


def add_to(app: typer.Typer) -> None:
    app.command("pending")(pending)


def pending(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """List what waits for a decision: candidates, and earlier adapters that somebody wants back."""
    from opsd.daemon.cli.words import verdict
    from opsd.v1.admin_pb2 import ListPendingRequest

    session: Session = context.obj
    with session.connect() as client:
        response = client.call(client.admin.ListPending, ListPendingRequest())
    if output is Output.JSON:
        emit_json(response)
        return
    if not response.candidates:
        say("nothing waits for a decision")
        return
    now_unix_s = time.time()
    print_table(
        ("name", "gate", "against", "age", "expires in", "approvals", "proposer"),
        (
            (
                found.adapter.name,
                verdict(found.adapter.gate_verdict),
                found.compared_with,
                duration(max(0.0, now_unix_s - found.since_unix_s)),
                _left(found, now_unix_s),
                f"{found.approvals} of {found.approvals_required}",
                found.proposer or "-",
            )
            for found in response.candidates
        ),
    )
    for found in response.candidates:
        for vote in found.votes:
            mark = ", overriding" if vote.override else ""
            print(
                f"\n{clean(found.adapter.name)}: {clean(vote.actor)} {clean(vote.decision)}s{mark} "
                f"(gate then: {clean(vote.verdict)}): {brief(vote.reason, 200)}"
            )
        if found.doubt:
            print(f"\n{clean(found.adapter.name)}: {brief(found.doubt, 400)}")


def _left(found: PendingCandidate, now_unix_s: float) -> str:
    if not found.expires_unix_s:
        return "never"
    return duration(max(0.0, found.expires_unix_s - now_unix_s))
