"""The command: checks everything, triggers every run, follows them, and writes the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.compare import ledger as ledgers
from opsd.daemon.cli.compare.collect import fetch_outcome
from opsd.daemon.cli.compare.files import write_file
from opsd.daemon.cli.compare.ledger import Entry, Ledger
from opsd.daemon.cli.compare.results import Outcome, summarise
from opsd.daemon.cli.compare.specs import Method, parse_seeds, raise_all, read_methods
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, clean, emit_json, print_table, say
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import TriggerRunRequest
    from opsd.v1.training_pb2 import RunSpec

_POINTS_OF_A_CURVE = 10
_TARGET_ACCURACY = 0.8


def add_to(app: typer.Typer) -> None:
    app.command()(compare)


def compare(
    context: typer.Context,
    spec: Annotated[
        list[Path] | None,
        typer.Argument(
            help="One TOML or JSON file a method: name, seeds, source, and the table training."
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="Of every method, in place of the files' own, e.g. 1,2,3.")
    ] = "",
    reason: Annotated[str, typer.Option(help="Why; it goes into every run's history.")] = "",
    source: Annotated[
        str, typer.Option(help="Train on this source's pairs only; a file may name its own.")
    ] = "",
    out: Annotated[
        Path | None, typer.Option(help="Directory for the results; default: a new one here.")
    ] = None,
    export_every: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps between two points of a curve; default: a tenth of the steps."
        ),
    ] = None,
    target_accuracy: Annotated[
        float | None,
        typer.Option(help="Count tokens and time to this accuracy, in (0, 1]; default: 0.8."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the comparison in this directory.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Trigger every run and leave; --resume comes back.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Train on the same data with several methods and compare what comes out.

    Every run is evaluated as always and then rejected: a comparison changes nothing that serves.
    Ctrl-C leaves the runs at work; --resume comes back to them.
    """
    session: Session = context.obj
    if target_accuracy is not None and not 0.0 < target_accuracy <= 1.0:
        raise _usage(f"--target-accuracy {target_accuracy:g} is not in (0, 1]", "e.g. 0.8")
    if resume is not None:
        if spec or seeds or reason or source or out or export_every:
            raise _usage("--resume takes these from the directory", "leave files and options out")
        directory, ledger = resume, ledgers.load(resume)
        ledger.target_accuracy = target_accuracy or ledger.target_accuracy
    else:
        if not spec:
            raise _usage("nothing to compare", "name one file a method, or --resume DIRECTORY")
        methods = read_methods(spec, parse_seeds(seeds), source)
        ledger = ledgers.new_ledger(
            reason=reason, target_accuracy=target_accuracy or _TARGET_ACCURACY
        )
        every = _check_with_daemon(session, ledger, methods, export_every)
        _enter_runs(ledger, methods, every)
        directory = out or Path(f"opsd-compare-{ledger.id[:8]}")
        ledgers.create(directory, ledger)
    try:
        _trigger_all(session, directory, ledger)
        if detach:
            say(f"{len(ledger.runs)} runs triggered; see them with: {_again(directory)}")
            return
        outcomes = _follow_all(session, directory, ledger)
    except KeyboardInterrupt:
        say(f"the runs go on; come back with: {_again(directory)}")
        raise
    _show(directory, ledger, outcomes, output)
    if not all(outcome.measured for outcome in outcomes):
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)


def _check_with_daemon(
    session: Session, ledger: Ledger, methods: Sequence[Method], export_every: int | None
) -> dict[str, int]:
    """Has the daemon resolve every method against its configuration, before any run is triggered.

    Returns the steps between two points of each method's curve.
    """
    from opsd.v1.admin_pb2 import TriggerRunRequest

    every: dict[str, int] = {}
    wrong: list[str] = []
    for method in methods:
        request = TriggerRunRequest(
            validate_only=True,
            source=method.source,
            actor=session.actor,
            reason=_reason(ledger, method.name),
        )
        _override(request, method.overrides, method.overridden)
        try:
            with session.connect() as client:
                planned = client.call(client.admin.TriggerRun, request)
        except CliError as error:
            if error.code is not Exit.INVALID_INPUT:
                raise
            wrong.append(_placed(method, error.message))
            continue
        if planned.id:
            raise CliError(
                f"the daemon at {session.address} is of an older version: it triggered run "
                f"{planned.id} where it was asked to check only",
                hint=f"opsd runs cancel {planned.id}, and update the daemon",
            )
        own = planned.spec.export_every_steps
        tenth = max(1, planned.spec.optim.num_steps // _POINTS_OF_A_CURVE)
        every[method.name] = export_every or own or tenth
    raise_all(wrong)
    return every


def _placed(method: Method, message: str) -> str:
    """The daemon's complaint with the line of the file that it is about, where it names one."""
    key = next((f"training.{key}" for key in method.overridden if key in message), "training")
    return f"{method.document.place(key)}: {message}"


def _enter_runs(ledger: Ledger, methods: Sequence[Method], every: dict[str, int]) -> None:
    for method in methods:
        for seed in method.seeds:
            overrides = type(method.overrides)()
            overrides.CopyFrom(method.overrides)
            overrides.export_every_steps = every[method.name]
            overridden = set(method.overridden) | {"export_every_steps"}
            if seed is not None:
                overrides.seed = seed
                overridden.add("seed")
            ledgers.add_run(
                ledger,
                method=method.name,
                seed=seed,
                source=method.source,
                overrides=_plain(overrides),
                overridden=sorted(overridden),
            )


def _trigger_all(session: Session, directory: Path, ledger: Ledger) -> None:
    """The first run of a source fixes the data; all others of it train on the same."""
    for entry in ledger.runs:
        if not entry.run_id:
            entry.run_id = _trigger(session, ledger, entry)
            ledgers.save(directory, ledger)


def _trigger(session: Session, ledger: Ledger, entry: Entry) -> str:
    from google.protobuf.json_format import ParseDict

    from opsd.v1.admin_pb2 import TriggerRunRequest
    from opsd.v1.training_pb2 import RunSpec

    request = TriggerRunRequest(
        reason=_reason(ledger, ledger.label(entry)),
        actor=session.actor,
        source=entry.source,
        request_id=entry.request_id,
        same_data_as=ledger.data_of(entry),
        measure_only=True,
    )
    _override(request, ParseDict(entry.overrides, RunSpec()), entry.overridden)
    with session.connect() as client:
        return client.call(client.admin.TriggerRun, request).id


def _follow_all(session: Session, directory: Path, ledger: Ledger) -> list[Outcome]:
    """Until every run is over; what is known is written after each."""
    from opsd.daemon.cli.watch import follow, progress_view

    outcomes: list[Outcome] = []
    for position, entry in enumerate(ledger.runs):
        say(f"{position + 1}/{len(ledger.runs)} {clean(ledger.label(entry))}: {entry.run_id}")
        view = progress_view()
        try:
            follow(session, entry.run_id, view)
        finally:
            view.close()
        outcomes.append(fetch_outcome(session, entry))
        _write(directory, ledger, outcomes)
    return outcomes


def _write(directory: Path, ledger: Ledger, outcomes: Sequence[Outcome]) -> None:
    from opsd.daemon.cli.compare import plots, tables

    summaries = summarise(outcomes, ledger.target_accuracy)
    write_file(directory / "table.md", tables.markdown(ledger, summaries))
    results = tables.as_json(ledger, outcomes, summaries)
    write_file(directory / "results.json", tables.json_text(results))
    write_file(directory / "curve.csv", tables.curve_csv(outcomes))
    write_file(directory / "curve.svg", plots.svg(outcomes))


def _show(directory: Path, ledger: Ledger, outcomes: Sequence[Outcome], output: Output) -> None:
    from opsd.daemon.cli.compare import plots, tables

    summaries = summarise(outcomes, ledger.target_accuracy)
    if output is Output.JSON:
        emit_json(tables.as_json(ledger, outcomes, summaries))
    else:
        names = tables.columns(ledger.target_accuracy)
        print_table(names, map(tables.row, summaries), right=tables.NUMERIC_COLUMNS)
        print(f"\n{clean(plots.text(outcomes), keep_lines=True)}")
    for entry, outcome in zip(ledger.runs, outcomes, strict=True):
        if not outcome.measured:
            why = clean(outcome.error) or outcome.state
            say(f"opsd: {clean(ledger.label(entry))}: run {outcome.run_id} {outcome.state}: {why}")
    say(f"table.md, results.json, curve.csv and curve.svg are in {directory}")


def _override(request: TriggerRunRequest, overrides: RunSpec, names: Sequence[str]) -> None:
    request.overrides.CopyFrom(overrides)
    request.overridden.paths.extend(names)


def _plain(overrides: RunSpec) -> dict[str, object]:
    """Proto3 JSON of what is set; zeros come back through the names of what is overridden."""
    from google.protobuf.json_format import MessageToDict

    found: dict[str, object] = MessageToDict(overrides, preserving_proto_field_name=True)
    return found


def _reason(ledger: Ledger, label: str) -> str:
    why = f"comparison {ledger.id[:8]}: {label}"
    return f"{why}: {ledger.reason}" if ledger.reason else why


def _again(directory: Path) -> str:
    return f"opsd compare --resume {directory}"


def _usage(message: str, hint: str) -> CliError:
    return CliError(message, hint=hint, code=Exit.USAGE)
