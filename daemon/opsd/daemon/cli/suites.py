"""`opsd suites`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
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
    when,
)
from opsd.daemon.cli.session import Session
from opsd.daemon.types.gate import SuiteRole

if TYPE_CHECKING:
    from opsd.v1.gate_pb2 import GetSuiteResponse, Suite, SuiteCheck, SuiteUpload

app = typer.Typer(help="Held-out suites: what the gate measures.", no_args_is_help=True)

PIECE_BYTES = 1 << 20
"""Of a file in one message: well under what a daemon accepts."""

FileArgument = Annotated[
    Path,
    typer.Argument(help="JSON lines, one item each.", exists=True, dir_okay=False, readable=True),
]
RoleOption = Annotated[SuiteRole, typer.Option(help="target must improve, guard must not regress.")]
MarginOption = Annotated[
    float, typer.Option(help="guard: loss tolerated; target: gain asked for (fractions).")
]
StratumMarginOption = Annotated[
    float, typer.Option(help="guard: loss tolerated in one stratum; 0: strata are not judged.")
]


@app.callback()
def _group() -> None:
    """Held-out suites: what the gate measures."""


@app.command()
def add(
    context: typer.Context,
    file: FileArgument,
    name: Annotated[str, typer.Option(help="An active suite of this name is replaced.")],
    role: RoleOption,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    margin: MarginOption = 0.02,
    stratum_margin: StratumMarginOption = 0.0,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Only coarse answers; --budget says how many.")
    ] = False,
    budget: Annotated[
        int, typer.Option(min=0, help="sealed: gates that may use it, until its items are fresh.")
    ] = 0,
    samples: Annotated[
        int, typer.Option(min=0, help="Answers drawn for an item; 0: gate.samples.")
    ] = 0,
    version: Annotated[
        str, typer.Option(help="Default: what the file's first line says, else the next number.")
    ] = "",
    description: Annotated[str, typer.Option(help="For those who list it.")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Add a suite, or a new version of one; every gate from now on measures it."""
    from opsd.v1 import gate_pb2 as pb

    session: Session = context.obj
    upload = _upload(file, name, role, margin, stratum_margin, sealed, budget, samples)
    upload.version, upload.description = version, description
    upload.actor, upload.reason = session.actor, reason

    def requests() -> Iterator[pb.AddSuiteRequest]:
        yield pb.AddSuiteRequest(upload=upload)
        yield from (pb.AddSuiteRequest(content=piece) for piece in _pieces(file))

    with session.connect() as client:
        added = client.call(client.gate.AddSuite, requests())
    num_overlapping = added.num_quarantined_exact + added.num_quarantined_near
    if num_overlapping:
        say(
            f"opsd: {num_overlapping} stored pairs overlap it ({added.num_quarantined_exact} "
            f"exactly, {added.num_quarantined_near} nearly) and are in quarantine"
        )
    if added.suite.queries_carried:
        say(
            f"opsd: only {percent(added.suite.fresh_share)} of its problems are fresh, so "
            f"{added.suite.queries_carried} gates that used the others count against it"
        )
    if output is Output.JSON:
        emit_json(added)
    else:
        _print_suite(added.suite)


@app.command("list")
def list_(
    context: typer.Context,
    all: Annotated[bool, typer.Option("--all", help="Retired versions too.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """List suites: role, size, and how often gates have used them."""
    from opsd.daemon.cli.words import suite_role, suite_state
    from opsd.v1.gate_pb2 import ListSuitesRequest

    session: Session = context.obj
    with session.connect() as client:
        response = client.call(client.gate.ListSuites, ListSuitesRequest(all=all))
    if output is Output.JSON:
        emit_json(response)
        return
    print_table(
        ("name", "version", "state", "role", "items", "margin", "sealed", "gates", "from"),
        (
            (
                suite.settings.name,
                suite.version,
                suite_state(suite.state),
                suite_role(suite.settings.role),
                str(suite.num_items),
                percent(suite.settings.margin),
                "sealed" if suite.settings.sealed else "-",
                _uses(suite),
                suite.source,
            )
            for suite in response.suites
        ),
        right=("items", "margin", "gates"),
    )


@app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A suite's name.")],
    version: Annotated[str, typer.Option(help="Default: the active one.")] = "",
    items: Annotated[
        bool, typer.Option("--items", help="Its items too; a sealed suite keeps them.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one suite."""
    from opsd.v1.gate_pb2 import GetSuiteRequest

    session: Session = context.obj
    with session.connect() as client:
        found = client.call(
            client.gate.GetSuite, GetSuiteRequest(name=name, version=version, include_items=items)
        )
    if output is Output.JSON:
        emit_json(found)
        return
    _print_suite(found.suite)
    if items:
        print()
        _print_items(found)


@app.command()
def check(
    context: typer.Context,
    subject: Annotated[str, typer.Argument(help="A file, or the name of an active suite.")],
    name: Annotated[
        str, typer.Option(help="Of a file: the active suite that it would replace, if any.")
    ] = "draft",
    role: RoleOption = SuiteRole.TARGET,
    margin: MarginOption = 0.02,
    stratum_margin: StratumMarginOption = 0.0,
    discordance: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of items on which two equally good adapters differ; 0: as measured, or "
            "else assumed.",
        ),
    ] = 0.0,
    difference: Annotated[
        list[float] | None,
        typer.Option(help="How many items this difference needs (a fraction); may be repeated."),
    ] = None,
    gate: Annotated[int, typer.Option(min=0, help="Of gates on these items; 0: the next.")] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what difference a suite can detect at its size, and what is wrong with it.

    A file is checked as `add` would, the stored pairs that overlap it are counted, and nothing is
    kept or changed; role and margins are asked for files only.
    """
    from opsd.v1 import gate_pb2 as pb

    session: Session = context.obj
    options = pb.SuiteCheckOptions(
        discordance=discordance, differences=difference or (), gate_number=gate
    )
    file = Path(subject)
    if file.is_file():
        options.upload.CopyFrom(_upload(file, name, role, margin, stratum_margin))
    elif "/" in subject or subject.endswith(".jsonl"):
        raise CliError(f"there is no file {subject}", code=Exit.NOT_FOUND)
    else:
        options.name = subject

    def requests() -> Iterator[pb.CheckSuiteRequest]:
        yield pb.CheckSuiteRequest(options=options)
        if file.is_file():
            yield from (pb.CheckSuiteRequest(content=piece) for piece in _pieces(file))

    with session.connect() as client:
        found = client.call(client.gate.CheckSuite, requests())
    if output is Output.JSON:
        emit_json(found)
    else:
        _print_check(found)
    if found.errors:
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)


@app.command()
def remove(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A suite that was added with `add`.")],
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit log.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Retire a suite: no gate measures it, and its problems may be trained on.

    Pairs that it put into quarantine stay there until they are released.
    """
    from opsd.v1.gate_pb2 import RemoveSuiteRequest

    session: Session = context.obj
    with session.connect() as client:
        removed = client.call(
            client.gate.RemoveSuite,
            RemoveSuiteRequest(name=name, reason=reason, actor=session.actor),
        )
    if output is Output.JSON:
        emit_json(removed)
    else:
        _print_suite(removed)
        say(
            "pairs that it put into quarantine are there still: `opsd pairs list --status "
            "quarantined`, `opsd pairs release`"
        )


def _upload(
    file: Path,
    name: str,
    role: SuiteRole,
    margin: float,
    stratum_margin: float,
    sealed: bool = False,
    budget: int = 0,
    samples: int = 0,
) -> SuiteUpload:
    from opsd.v1 import admin_pb2
    from opsd.v1 import gate_pb2 as pb

    return pb.SuiteUpload(
        settings=pb.SuiteSettings(
            name=name,
            role=admin_pb2.SuiteRole.Value(f"SUITE_ROLE_{role.value.upper()}"),
            margin=margin,
            stratum_margin=stratum_margin,
            sealed=sealed,
            budget=budget,
            samples=samples,
        ),
        file_name=file.name,
    )


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def _uses(suite: Suite) -> str:
    budget = suite.settings.budget
    return f"{suite.queries_used} of {budget}" if budget else str(suite.queries_used)


def _print_suite(suite: Suite) -> None:
    from opsd.daemon.cli.words import suite_role, suite_state

    settings = suite.settings
    print_fields(
        [
            ("name", settings.name),
            ("version", suite.version),
            ("state", suite_state(suite.state)),
            ("what", suite.description),
            ("role", suite_role(settings.role)),
            ("items", str(suite.num_items)),
            ("margin", percent(settings.margin)),
            ("in a stratum", percent(settings.stratum_margin) if settings.stratum_margin else ""),
            ("samples", str(settings.samples) if settings.samples else ""),
            ("sealed", "yes: only coarse answers" if settings.sealed else ""),
            ("gates", _uses(suite)),
            ("fresh", percent(suite.fresh_share)),
            ("from", f"{suite.source}, by {suite.actor}"),
            ("why", suite.reason),
            ("added", when(suite.created_unix_s)),
            ("retired", when(suite.retired_unix_s)),
            ("sha256", suite.sha256),
        ]
    )


def _print_items(found: GetSuiteResponse) -> None:
    print_table(
        ("id", "stratum", "cluster", "verifier", "problem", "reference"),
        (
            (
                item.id,
                item.stratum or "-",
                item.cluster or "-",
                item.verifier,
                brief(item.prompt),
                brief(item.reference, 30),
            )
            for item in found.items
        ),
    )


def _print_check(found: SuiteCheck) -> None:
    from opsd.daemon.cli.words import suite_role

    margin = found.settings.margin
    clusters = f" in {found.num_clusters} clusters" if found.num_clusters < found.num_items else ""
    worth = f", worth {found.effective_items:.0f} at worst" if clusters else ""
    print_fields(
        [
            ("suite", f"{found.settings.name} {found.version}".strip()),
            ("role", f"{suite_role(found.settings.role)}, margin {percent(margin)}"),
            ("items", f"{found.num_items}{clusters}{worth}"),
            ("gate", f"number {found.gate_number} on these items"),
            ("discordance", f"{percent(found.discordance)} ({found.discordance_source})"),
            (
                "a gain",
                f"{_gain(found.detectable_gain)} shown 4 times in 5 "
                f"(p ≤ {found.gain_level:.2g}, one-sided)",
            ),
            (
                "no loss",
                f"of more than {_points(found.holdable_margin)} is ruled out 4 times in 5 when "
                f"nothing changed (p ≤ {found.guard_level:.2g}, one-sided)",
            ),
            ("sha256", found.sha256),
        ]
    )
    if found.needed:
        print()
        print_table(
            ("difference", "items needed"),
            (
                (_points(one.difference), f"{one.num_items:,}" if one.num_items else "-")
                for one in found.needed
            ),
            right=("difference", "items needed"),
        )
    if found.strata:
        print()
        print_table(
            ("stratum", "items", "loss ruled out"),
            (
                (one.stratum or "-", str(one.num_items), _points(one.holdable_margin))
                for one in found.strata
            ),
            right=("items", "loss ruled out"),
        )
    for title, said in (("error", found.errors), ("warning", found.warnings)):
        for line in said:
            print(f"{title}: {clean(line)}")


def _gain(fraction: float) -> str:
    return f"{_points(fraction)} are" if fraction else "of no size is"


def _points(fraction: float) -> str:
    return f"{100 * fraction:.1f} points" if fraction else "no number of points"
