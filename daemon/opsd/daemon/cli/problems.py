"""`opsd problems`."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsd.daemon.cli.datasets import Plan, import_problem
from opsd.daemon.cli.exports import Exporter
from opsd.daemon.cli.imports import Importer, ImportOptions, Told
from opsd.daemon.cli.jsonl import problem_request
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    emit_json,
    print_fields,
    print_table,
    say,
    to_dict,
)
from opsd.daemon.cli.paging import LimitOption, pages
from opsd.daemon.cli.session import Session
from opsd.daemon.cli.submit import PROBLEMS
from opsd.daemon.cli.transfer import (
    FileArgument,
    MapOption,
    PresetOption,
    RejectedOption,
    ResumeOption,
    RetriesOption,
    SourceOption,
    StratumOption,
    StrictOption,
    VerifierOption,
    make_plan,
)

if TYPE_CHECKING:
    from opsd.daemon.cli.session import Client
    from opsd.v1.collection_pb2 import ListProblemsResponse, Problem, ProblemResult

app = typer.Typer(help="Problems for the model to attempt.", no_args_is_help=True)


class State(StrEnum):
    OPEN = "open"
    SOLVED = "solved"
    GIVEN_UP = "given_up"
    HELD_OUT = "held_out"
    REFUSED = "refused"


StateOption = Annotated[State | None, typer.Option(help="Only these.")]


@app.callback()
def _group() -> None:
    """Problems for the model to attempt."""


@app.command()
def submit(
    context: typer.Context,
    file: FileArgument,
    source: Annotated[str, typer.Option(help="Source of problems that name none.")] = "",
    retries: RetriesOption = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send problems in opsd's own form; repeating it stores nothing twice.

    A line is an object with prompt and verifier and, if wanted, reference (the answer; without it
    agreement among the model's samples may give one), id (a UUID; made from the content otherwise),
    source, stratum and priority (higher is attempted first). It stops at the first bad line.
    """
    importer = Importer(
        context.obj,
        PROBLEMS,
        partial(problem_request, default_source=source),
        _tell,
        ImportOptions(
            file,
            resume=False,
            strict=True,
            strict_hint="mend the line and send the file again; `opsd problems import` goes on "
            "after such lines",
            keep_place=False,
            retries=retries,
            output=output,
        ),
    )
    raise typer.Exit(importer.run())


@app.command("import")
def import_(
    context: typer.Context,
    file: FileArgument,
    map: MapOption = "",
    preset: PresetOption = None,
    verifier: VerifierOption = "math",
    source: SourceOption = "",
    stratum: StratumOption = "",
    without_reference: Annotated[
        bool, typer.Option("--without-reference", help="Leave answers out, also known ones.")
    ] = False,
    strict: StrictOption = False,
    resume: ResumeOption = True,
    rejected: RejectedOption = "",
    retries: RetriesOption = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import problems from a data set, as `opsd pairs import` does; solutions are left out."""
    plan = make_plan(file, map, preset, verifier, source, stratum)
    plan = Plan(**{**vars(plan), "without_reference": without_reference})
    importer = Importer(
        context.obj,
        PROBLEMS,
        partial(import_problem, plan=plan),
        _tell,
        ImportOptions(
            file=file,
            rejected=rejected,
            resume=resume,
            strict=strict,
            retries=retries,
            output=output,
            identity=("problems", repr(plan), rejected),
        ),
    )
    raise typer.Exit(importer.run())


def _tell(result: ProblemResult) -> Told:
    from opsd.daemon.cli.words import problem_result

    kind = problem_result(result.kind) or "unspecified"
    if kind in ("stored", "already_stored", "duplicate"):
        return Told(kind.replace("_", " "))
    return Told(kind, result.message, refused=True, is_good=False)


@app.command("list")
def list_(
    context: typer.Context,
    state: StateOption = None,
    source: Annotated[str, typer.Option(help="Only of this source.")] = "",
    limit: LimitOption = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List problems, newest first."""
    from opsd.daemon.cli.words import problem_state
    from opsd.v1 import collection_pb2 as pb

    session: Session = context.obj
    totals: list[int] = []
    with session.connect() as client:

        def fetch(size: int, token: str) -> ListProblemsResponse:
            request = pb.ListProblemsRequest(
                page_size=size, page_token=token, state=_state(state), source=source
            )
            response = client.call(client.sources.ListProblems, request)
            totals.append(response.total)
            return response

        found: list[Problem] = list(
            pages(fetch, lambda r: r.problems, lambda r: r.next_page_token, limit)
        )
    if output is Output.JSON:
        emit_json({"problems": [to_dict(problem) for problem in found], "total": totals[0]})
        return
    print_table(
        ("ID", "STATE", "VERIFIER", "ANSWER", "TRIES", "SOLVED", "SOURCE", "PROMPT"),
        (
            (
                problem.input.id,
                problem_state(problem.state),
                problem.input.verifier,
                "known" if problem.input.reference else "unknown",
                str(problem.tries),
                f"{problem.solves}/{problem.attempts}",
                problem.input.source or "-",
                brief(problem.input.prompt),
            )
            for problem in found
        ),
        right=("TRIES", "SOLVED"),
    )
    if len(found) < totals[0]:
        say(f"{len(found)} of {totals[0]}; --limit 0 lists all")


@app.command()
def export(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="JSON lines to write; `-`: stdout.")],
    state: StateOption = None,
    source: Annotated[str, typer.Option(help="Only of this source.")] = "",
    resume: ResumeOption = True,
    retries: RetriesOption = 5,
) -> None:
    """Export problems, oldest first, so that `opsd problems import` reads them back."""
    from opsd.v1 import collection_pb2 as pb

    request = pb.ExportProblemsRequest(state=_state(state), source=source)

    def fetch(client: Client, seq: int) -> Iterator[Problem]:
        request.after_seq = seq
        return client.stream(client.sources.ExportProblems, request)

    exporter = Exporter(
        context.obj,
        file,
        fetch,
        _record,
        lambda problem: problem.seq,
        identity=("problems", state, source),
        resume=resume,
        retries=retries,
    )
    say(f"{exporter.run()} problems")


@app.command()
def status(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Show what the sources that sample the model do: harvest, self-consistency, self-play."""
    from opsd.v1.collection_pb2 import GetSourcesRequest

    session: Session = context.obj
    with session.connect() as client:
        response = client.call(client.sources.GetSources, GetSourcesRequest())
    if output is Output.JSON:
        emit_json(response)
        return
    for source in response.sources:
        print_fields(
            [
                ("source", source.name),
                ("does", source.doing),
                ("pairs in 24 h", f"{source.pairs_today} of {source.daily_quota}"),
                ("open problems", str(source.problems_open)),
                ("last error", source.last_error),
            ]
        )
        print()


def _state(state: State | None) -> Any:
    from opsd.v1 import collection_pb2 as pb

    return pb.ProblemState.Value(f"PROBLEM_STATE_{state.name if state else 'UNSPECIFIED'}")


def _record(problem: Problem) -> dict[str, Any]:
    from opsd.daemon.cli.words import problem_state

    given = problem.input
    return {
        "id": given.id,
        "prompt": given.prompt,
        "verifier": given.verifier,
        "reference": given.reference,
        "source": given.source,
        "stratum": given.stratum,
        "priority": given.priority,
        "origin": problem.origin,
        "state": problem_state(problem.state),
        "attempts": problem.attempts,
        "solves": problem.solves,
        "tries": problem.tries,
        "pair_id": problem.pair_id,
        "note": problem.note,
    }
