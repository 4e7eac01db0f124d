"""`opsd status`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    duration,
    emit_json,
    percent,
    print_fields,
)
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import Status


def add_to(app: typer.Typer) -> None:
    app.command()(status)


def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show what the daemon serves, holds and does."""
    from opsd.v1.admin_pb2 import GetStatusRequest

    session: Session = context.obj
    with session.connect() as client:
        found = client.call(client.admin.GetStatus, GetStatusRequest())
    if output is Output.JSON:
        emit_json(found)
    else:
        print_fields(_fields(found, session.address))


def _fields(found: Status, address: str) -> list[tuple[str, str]]:
    from opsd.daemon.cli.runs import one_line
    from opsd.daemon.cli.words import serving_state

    loaded = [f"{a.name} ({a.role}, {a.in_flight} in flight)" for a in found.loaded]
    canary = f"{found.canary}, {percent(found.canary_share)} of traffic" if found.canary else ""
    pairs = found.pairs
    pool = f"{found.pool_devices} devices, "
    pool += f"held by run {found.pool_holder}" if found.pool_holder else "free"
    return [
        ("daemon", f"{found.version} at {address}, up {duration(found.uptime_s)}"),
        ("serving", serving_state(found.serving)),
        ("message", found.message),
        ("model", found.model),
        ("incumbent", f"{found.incumbent} (epoch {found.incumbent_epoch})"),
        ("previous", found.previous),
        ("canary", canary),
        ("loaded", "\n".join(loaded)),
        ("requests", f"{found.requests_in_flight} in flight"),
        (
            "pairs",
            f"{pairs.verified} verified, {pairs.unverified} unverified, "
            f"{pairs.new_since_last_run} new since the last run",
        ),
        ("run", one_line(found.active_run) if found.HasField("active_run") else "none active"),
        ("pool", pool),
        ("store", found.store_url),
    ]
