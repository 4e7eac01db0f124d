"""`opsd adapters canary`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.decisions import (
    ReasonOption,
    YesOption,
    confirm,
    need_reason,
    print_change,
)
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    duration,
    emit_json,
    print_fields,
    print_table,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import Canary, CanaryMetric

app = typer.Typer(help="The canary: look, go on, take back.", no_args_is_help=True)

_RANKED = ("latency", "length")


@app.callback()
def _group() -> None:
    """The canary: look, go on, take back."""


@app.command()
def status(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="An adapter's name, a unique prefix will do; default: the newest.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a canary's step, what is known of it beside the incumbent, and what it waits for."""
    session: Session = context.obj
    with session.connect() as client:
        found = _get(client, name)
    if output is Output.JSON:
        emit_json(found)
        return
    print_fields(_fields(found))
    print()
    print_table(
        ("metric", "canary", "n", "incumbent", "n", "pairs", "n", "harm", "within margin"),
        (_row(metric, found.alpha) for metric in found.metrics),
        right=("canary", "n", "incumbent", "pairs", "harm"),
    )


@app.command()
def advance(
    context: typer.Context,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take the canary's next step by hand; the last one promotes."""
    from opsd.v1.admin_pb2 import AdvanceCanaryRequest

    need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        found = _get(client, "")
        following = found.steps[found.step] if found.step < len(found.steps) else 1.0
        confirm(f"Give {clean(found.adapter)} {100 * following:g} % of the traffic?", yes)
        request = AdvanceCanaryRequest(reason=reason, actor=session.actor)
        change = client.call(client.admin.AdvanceCanary, request)
    print_change(change, output)


@app.command()
def abort(
    context: typer.Context,
    reason: ReasonOption,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Withdraw the canary; the incumbent serves all traffic again."""
    from opsd.v1.admin_pb2 import RollbackRequest

    need_reason(reason)
    session: Session = context.obj
    with session.connect() as client:
        found = _get(client, "")
        confirm(f"Withdraw {clean(found.adapter)}?", yes)
        request = RollbackRequest(reason=reason, actor=session.actor, canary_only=True)
        change = client.call(client.admin.Rollback, request)
    print_change(change, output)


def _get(client: Client, name: str) -> Canary:
    from opsd.v1.admin_pb2 import GetCanaryRequest

    return client.call(client.admin.GetCanary, GetCanaryRequest(name=name))


def _fields(found: Canary) -> list[tuple[str, str]]:
    steps = " → ".join(f"{100 * share:g} %" for share in found.steps)
    running = found.end == "running"
    share = f"{found.step} of {len(found.steps)}"
    if running:
        share += f", for {duration(max(0.0, time.time() - found.step_started_unix_s))}"
    return [
        ("canary", found.adapter),
        ("state", found.end),
        ("step", share),
        ("steps", f"{steps} ({found.mode})"),
        ("mirrored", f"{100 * found.shadow_share:g} % of requests" if found.shadow_share else ""),
        ("since", when(found.started_unix_s)),
        ("ended", when(found.ended_unix_s)),
        (
            "this step",
            f"{found.step_requests} requests, {found.step_pairs} mirrored pairs, "
            f"{found.step_outcomes} verified outcomes",
        ),
        ("harm", f"e-value {found.e_value:.3g}" + (_needed(found.alpha) if found.alpha else "")),
        ("waits for" if running else "why", found.reason),
    ]


def _needed(alpha: float) -> str:
    return f" ({1 / alpha:g} withdraws)"


def _row(metric: CanaryMetric, alpha: float) -> tuple[str, ...]:
    ranked = metric.name in _RANKED

    def mean(value: float, n: int) -> str:
        if not n:
            return "-"
        return f"rank {value:.2f}" if ranked else f"{100 * value:.1f} %"

    if metric.proven:
        safe = f"proven ({metric.margin:g})"
    else:
        safe = f"e-value {metric.safe_e_value:.3g} of {1 / alpha:g}" if alpha else ""
        safe += "" if metric.must_prove else ", not asked for"
    return (
        metric.name,
        mean(metric.canary_mean, metric.canary_n),
        str(metric.canary_n),
        mean(metric.incumbent_mean, metric.incumbent_n),
        str(metric.incumbent_n),
        f"{metric.pairs_mean:+.3f}" if metric.pairs_n else "-",
        str(metric.pairs_n),
        f"e-value {metric.harm_e_value:.3g}",
        safe,
    )
