"""`opsd pairs`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli import curate, transfer
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.inputs import STDIN, open_input, progress
from opsd.daemon.cli.jsonl import Line, pair_request, read_lines
from opsd.daemon.cli.output import (
    MESSAGE_CHARS,
    Output,
    OutputOption,
    brief,
    clean,
    emit_json,
    print_fields,
    print_table,
    say,
    to_dict,
    when,
)
from opsd.daemon.cli.paging import LimitOption, pages
from opsd.daemon.cli.session import Session
from opsd.daemon.cli.submit import PAIRS, Submitter

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import ListPairsResponse, Pair, PairResult, SubmitPairsRequest

app = typer.Typer(help="Problem-solution pairs.", no_args_is_help=True)

MAX_MESSAGES = 20


class Status(StrEnum):
    VERIFIED = "verified"
    UNVERIFIED = "unverified"
    QUARANTINED = "quarantined"
    PURGED = "purged"


@app.callback()
def _group() -> None:
    """Problem-solution pairs."""


@app.command()
def submit(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="JSON lines; `-`: stdin.")],
    source: Annotated[str, typer.Option(help="Source of pairs that name none.")] = "",
    allow_unverified: Annotated[
        bool, typer.Option("--allow-unverified", help="Exit 0 although pairs failed verification.")
    ] = False,
    retries: Annotated[
        int, typer.Option(min=0, help="How often a lost daemon is tried again in a row.")
    ] = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send pairs to be verified and stored; repeating it stores nothing twice.

    A line is an object with prompt, solution, verifier and reference, and, if wanted, id (a UUID;
    made from the content otherwise), source and stratum. A file is checked whole before anything is
    sent; from stdin each line is sent as it comes. With -o json each result is a line on stdout.
    """
    tally = _Tally(file, output)
    parse = partial(pair_request, default_source=source)
    if file != STDIN:
        _check_whole(file, parse)
    with open_input(file) as opened, progress("submitting", opened.size_bytes) as advance:

        def on_result(line: Line[SubmitPairsRequest], result: PairResult) -> None:
            tally.add(line, result)
            advance(opened.position())

        lines = tally.valid(read_lines(opened.stream, parse))
        try:
            Submitter(context.obj, lines, on_result, retries, PAIRS).run()
        except BaseException:
            tally.close()
            raise
    tally.close()
    raise typer.Exit(tally.exit_code(allow_unverified))


def _check_whole(file: str, parse: Callable[[bytes], SubmitPairsRequest]) -> None:
    """Raises CliError that names every bad line, up to a limit."""
    bad = 0
    with open_input(file) as opened:
        for line in read_lines(opened.stream, parse):
            if line.error:
                bad += 1
                if bad <= MAX_MESSAGES:
                    say(f"{file}:{line.number}: {line.error}")
    if bad:
        more = f" (the first {MAX_MESSAGES} are above)" if bad > MAX_MESSAGES else ""
        raise CliError(
            f"{file}: {bad} bad lines{more}; nothing was sent"
            if bad > 1
            else f"{file}: 1 bad line; nothing was sent",
            code=Exit.INVALID_INPUT,
        )


class _Tally:
    """Counts results and speaks of those that need a person."""

    def __init__(self, file: str, output: Output) -> None:
        self._file = "stdin" if file == STDIN else file
        self._output = output
        self._counts: dict[str, int] = {}
        self._already = 0
        self._malformed = 0
        self._messages = 0

    def valid(
        self, lines: Iterator[Line[SubmitPairsRequest]]
    ) -> Iterator[Line[SubmitPairsRequest]]:
        """The lines that are pairs; the others are counted and named."""
        for line in lines:
            if line.item is not None:
                yield line
            else:
                self._malformed += 1
                self._say(line.number, f"not sent: {line.error}")

    def add(self, line: Line[SubmitPairsRequest], result: PairResult) -> None:
        from opsd.daemon.cli.words import pair_status

        status = pair_status(result.status) or "unspecified"
        self._counts[status] = self._counts.get(status, 0) + 1
        self._already += result.already_stored
        if self._output is Output.JSON:
            emit_json(to_dict(result) | {"line": line.number}, line=True)
        if status not in ("verified", "duplicate"):
            why = result.message or result.verdict.evidence
            self._say(line.number, f"{status}: {brief(why, MESSAGE_CHARS)}" if why else status)

    def _say(self, number: int, message: str) -> None:
        self._messages += 1
        if self._messages <= MAX_MESSAGES:
            say(f"{self._file}:{number}: {message}")
        elif self._messages == MAX_MESSAGES + 1:
            say("… and more: -o json prints every result")

    def close(self) -> None:
        """The summary: data, unless the results themselves are."""
        total = sum(self._counts.values())
        parts = [f"{count} {status.replace('_', '-')}" for status, count in self._counts.items()]
        if self._already:
            parts.append(f"{self._already} of them stored before")
        if self._malformed:
            parts.append(f"{self._malformed} malformed lines not sent")
        text = f"{total} acknowledged" + (f": {', '.join(parts)}" if parts else "")
        if self._output is Output.JSON:
            say(text)
        else:
            print(text)

    def exit_code(self, allow_unverified: bool) -> Exit:
        if self._malformed:
            return Exit.INVALID_INPUT
        good = {"verified", "duplicate"} | ({"unverified"} if allow_unverified else set())
        return Exit.OK if set(self._counts) <= good else Exit.NEGATIVE_OUTCOME


transfer.add_to(app)


@app.command("list")
def list_(
    context: typer.Context,
    status: Annotated[Status | None, typer.Option(help="Only these.")] = None,
    source: Annotated[str, typer.Option(help="Only of this source.")] = "",
    submitter: Annotated[str, typer.Option(help="Only of this submitter.")] = "",
    origin: Annotated[str, typer.Option(help="Only of this origin, e.g. self_play.")] = "",
    limit: LimitOption = 50,
    output: OutputOption = Output.TABLE,
) -> None:
    """List stored pairs, newest first; purged ones only when asked for."""
    from opsd.daemon.cli.words import pair_status
    from opsd.v1 import collection_pb2 as pb

    name = status.name if status is not None else "UNSPECIFIED"
    wanted = pb.PairStatus.Value(f"PAIR_STATUS_{name}")
    session: Session = context.obj
    totals: list[int] = []
    with session.connect() as client:

        def fetch(size: int, token: str) -> ListPairsResponse:
            request = pb.ListPairsRequest(
                page_size=size,
                page_token=token,
                status=wanted,
                source=source,
                submitter=submitter,
                origin=origin,
            )
            response = client.call(client.collection.ListPairs, request)
            totals.append(response.total)
            return response

        found: list[Pair] = list(
            pages(fetch, lambda r: r.pairs, lambda r: r.next_page_token, limit)
        )
    if output is Output.JSON:
        emit_json({"pairs": [to_dict(pair) for pair in found], "total": totals[0]})
        return
    print_table(
        ("id", "status", "verifier", "origin", "submitter", "source", "created", "prompt"),
        (
            (
                pair.input.id,
                pair_status(pair.status),
                pair.input.verifier,
                pair.origin or "-",
                brief(pair.submitter, 24) or "-",
                brief(pair.input.source, 24) or "-",
                when(pair.created_unix_s),
                brief(pair.input.prompt),
            )
            for pair in found
        ),
    )
    if len(found) < totals[0]:
        say(f"{len(found)} of {totals[0]}; --limit 0 lists all")


@app.command()
def show(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="The pair's UUID.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one pair and its verdict."""
    from opsd.daemon.cli.words import pair_status, pair_verdict
    from opsd.v1.collection_pb2 import GetPairRequest

    session: Session = context.obj
    with session.connect() as client:
        pair = client.call(client.collection.GetPair, GetPairRequest(id=id))
    if output is Output.JSON:
        emit_json(pair)
        return
    verdict = pair.verdict
    print_fields(
        [
            ("id", pair.input.id),
            ("status", pair_status(pair.status)),
            ("verdict", f"{pair_verdict(verdict.kind)} by {verdict.verifier}: {verdict.evidence}"),
            ("quarantine", pair.quarantine_reason),
            ("origin", pair.origin),
            ("submitter", pair.submitter),
            ("created", when(pair.created_unix_s)),
            ("source", pair.input.source),
            ("stratum", pair.input.stratum),
            ("verifier", pair.input.verifier),
            ("reference", pair.input.reference),
            ("prompt", pair.input.prompt),
            ("solution", clean(pair.input.solution, keep_lines=True)),
        ]
    )


curate.add_to(app)
