"""What the commands that decide about adapters share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import (
    Output,
    clean,
    duration,
    emit_json,
    is_terminal,
    print_fields,
    say,
)

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import AdapterChange

ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def need_reason(reason: str) -> None:
    if not reason.strip():
        raise CliError(
            "--reason is empty", hint="say why: it goes into the audit log", code=Exit.USAGE
        )


def may_ask(yes: bool) -> bool:
    """Whether a person is there and has not answered yet."""
    return not yes and is_terminal()


def confirm(question: str, yes: bool) -> None:
    """Asks only where there is somebody to answer."""
    if may_ask(yes) and not typer.confirm(question, err=True):
        raise CliError("declined: nothing has changed")


def print_change(change: AdapterChange, output: Output) -> None:
    from opsd.daemon.cli.words import adapter_state
    from opsd.v1 import admin_pb2 as pb

    if output is Output.JSON:
        emit_json(change)
        return
    adapter = change.adapter
    votes = ""
    if change.approvals_required:
        votes = f"{change.approvals} of {change.approvals_required}"
    # Base has no line: it is no adapter.
    named = f"{adapter.name}, now {adapter_state(adapter.state)}" if adapter.name else ""
    print_fields(
        [
            ("adapter", named),
            ("approvals", votes),
            ("incumbent", f"{change.incumbent} (epoch {change.epoch})"),
            ("previous", change.previous),
            ("audit", str(change.audit_id)),
            ("took", duration(change.swap_s)),
        ]
    )
    if change.approvals < change.approvals_required:
        say(f"{votes} approvals: another person must approve; {clean(change.incumbent)} serves on")
    elif adapter.state == pb.ADAPTER_STATE_CANARY:
        say(
            f"{clean(change.incumbent)} serves, {clean(adapter.name)} is its canary: "
            "`opsd adapters canary status`"
        )
    else:
        say(f"{clean(change.incumbent)} serves")
