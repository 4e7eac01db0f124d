"""`opsd audit`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    clean,
    console,
    emit_json,
    is_terminal,
    print_fields,
    print_table,
    say,
    to_dict,
    when,
)
from opsd.daemon.cli.paging import LimitOption, pages
from opsd.daemon.cli.public_keys import PublicKeyOption, read_ring
from opsd.daemon.cli.session import Session
from opsd.daemon.types.audit import ChainVerifier, Head, parse_head

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import AuditEntry, AuditProgress, ListAuditResponse

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


@app.command()
def head(context: typer.Context, output: OutputOption = Output.TABLE) -> None:
    """Print the log's newest entry as ID:HASH, to be kept where the daemon cannot change it."""
    from opsd.v1.admin_pb2 import GetAuditHeadRequest

    session: Session = context.obj
    with session.connect() as client:
        found = client.call(client.admin.GetAuditHead, GetAuditHeadRequest())
    if output is Output.JSON:
        emit_json(found)
    elif found.id:
        print(Head(found.id, found.sha256))
    if found.problem:
        raise CliError(
            f"the head is not signed: {clean(found.problem)}",
            hint="`opsd audit verify` shows what is wrong",
            code=Exit.NEGATIVE_OUTCOME,
        )


@app.command()
def export(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="File to write, as JSON lines.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write the whole log with its signed heads to a file that anybody can verify."""
    from opsd.daemon.cli.audit_file import write_export
    from opsd.v1.admin_pb2 import ExportAuditRequest

    if file.exists() and not force:
        raise CliError(f"{file} exists", hint="--force overwrites it", code=Exit.REFUSED)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    session: Session = context.obj
    try:
        with session.connect() as client, temporary.open("wb") as sink:
            batches = client.stream(client.admin.ExportAudit, ExportAuditRequest())
            entries, heads = write_export(batches, sink)
        temporary.replace(file)
    except OSError as error:
        raise CliError(f"{file}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    say(f"{file}: {entries} entries, {heads} signed heads")


@app.command()
def verify(
    context: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="An export; without one, the daemon checks its own log.")
    ] = None,
    public_key: PublicKeyOption = None,
    expect_head: Annotated[
        str, typer.Option(metavar="ID:HASH", help="A head kept earlier, which the log must hold.")
    ] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Find edited, deleted, inserted or reordered entries.

    With FILE no daemon is asked or trusted: the signed heads in it are checked with --public-key.
    Exits with 7 when something is wrong.
    """
    expected = _expected(expect_head)
    if file is not None:
        _verify_file(file, public_key or [], expected, output)
        return
    if public_key:
        raise CliError(
            "--public-key is for an export",
            hint="`opsd audit export FILE`, then `opsd audit verify FILE --public-key KEY`",
            code=Exit.USAGE,
        )
    from opsd.v1.admin_pb2 import VerifyAuditRequest

    session: Session = context.obj
    request = VerifyAuditRequest(expected_head=str(expected) if expected else "")
    with session.connect() as client, _bar() as show:
        last: AuditProgress | None = None
        for last in client.stream(client.admin.VerifyAudit, request):
            show(last.checked, last.total)
    if last is None or not last.done:
        raise CliError("the daemon ended the check before its end")
    problems = [(problem.entry_id, problem.message) for problem in last.problems]
    head = Head(last.head_id, last.head_sha256)
    _report(last.checked, head, last.signed_heads, problems, last.num_problems, output)


def _expected(text: str) -> Head | None:
    if not text:
        return None
    try:
        return parse_head(text)
    except ValueError as error:
        raise CliError(f"--expect-head: {error}", code=Exit.USAGE) from error


def _verify_file(path: Path, keys: list[str], expected: Head | None, output: Output) -> None:
    from opsd.daemon.cli.audit_file import verify_export

    trusted = read_ring(keys) if keys else None
    with _bar() as show:
        chain, heads = verify_export(
            path, trusted=trusted, expected=expected, on_progress=lambda n: show(n, 0)
        )
    if trusted is None:
        say(
            "no --public-key: signatures were not checked, so a log that was rewritten as a whole "
            "would pass" + ("" if expected is None else " unless it ends before --expect-head")
        )
    _report(chain.checked, chain.head, heads, _pairs(chain), chain.num_problems, output)


def _pairs(chain: ChainVerifier) -> list[tuple[int, str]]:
    return [(problem.entry_id, problem.message) for problem in chain.problems]


def _report(
    checked: int,
    head: Head,
    heads: int,
    problems: list[tuple[int, str]],
    num_problems: int,
    output: Output,
) -> None:
    if output is Output.JSON:
        emit_json(
            {
                "checked": checked,
                "head": str(head),
                "signed_heads": heads,
                "num_problems": num_problems,
                "problems": [
                    {"entry_id": entry_id, "message": message} for entry_id, message in problems
                ],
            }
        )
    elif problems:
        print_table(
            ("entry", "what is wrong"),
            ((str(entry_id) if entry_id else "-", message) for entry_id, message in problems),
            right=("entry",),
        )
    else:
        print_fields([("entries", str(checked)), ("head", str(head)), ("signed heads", str(heads))])
    if num_problems:
        shown = f", {len(problems)} of them shown" if len(problems) < num_problems else ""
        say(f"the log does not verify: {num_problems} problems in {checked} entries{shown}")
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)
    say(f"{checked} entries verified")


@contextmanager
def _bar() -> Iterator[Any]:
    """How far it is, where a person looks on."""
    if not is_terminal():
        yield lambda checked, total: None
        return
    from rich.progress import Progress

    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("entries", total=None)
        yield lambda checked, total: progress.update(task, completed=checked, total=total or None)
