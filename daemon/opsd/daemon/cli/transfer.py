"""`opsd pairs import` and `opsd pairs export`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsd.daemon.cli.datasets import FIELDS, Plan, Preset, import_pair, parse_map
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.exports import Exporter
from opsd.daemon.cli.imports import Importer, ImportOptions, Told
from opsd.daemon.cli.inputs import STDIN
from opsd.daemon.cli.output import Output, OutputOption, say
from opsd.daemon.cli.submit import PAIRS
from opsd.daemon.types.pairs import Origin

if TYPE_CHECKING:
    from opsd.daemon.cli.session import Client
    from opsd.v1.collection_pb2 import ExportedPair, PairResult

FileArgument = Annotated[str, typer.Argument(help="JSON lines, gzipped or not; `-`: stdin.")]
MapOption = Annotated[
    str,
    typer.Option(
        "--map",
        metavar="OURS=THEIRS,…",
        help=f"Which field of a record is which of ours ({', '.join(FIELDS)}).",
    ),
]
PresetOption = Annotated[Preset | None, typer.Option(help="The fields of a well-known format.")]
VerifierOption = Annotated[str, typer.Option(help="Verifier of records that name none.")]
SourceOption = Annotated[
    str, typer.Option(help="Source of records that name none; default: the file's name.")
]
StratumOption = Annotated[str, typer.Option(help="Stratum of records that name none.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on where an earlier command stopped.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Stop at the first line that is malformed or refused.")
]
RejectedOption = Annotated[
    str,
    typer.Option(help="Where rejected lines go, with reasons; default: FILE.rejected.jsonl."),
]
RetriesOption = Annotated[
    int, typer.Option(min=0, help="How often a lost daemon is tried again in a row.")
]
AllowUnverifiedOption = Annotated[
    bool, typer.Option("--allow-unverified", help="Exit 0 although pairs failed verification.")
]


class ExportStatus(StrEnum):
    VERIFIED = "verified"
    UNVERIFIED = "unverified"


def import_(
    context: typer.Context,
    file: FileArgument,
    map: MapOption = "",
    preset: PresetOption = None,
    verifier: VerifierOption = "math",
    source: SourceOption = "",
    stratum: StratumOption = "",
    strict: StrictOption = False,
    resume: ResumeOption = True,
    rejected: RejectedOption = "",
    allow_unverified: AllowUnverifiedOption = False,
    retries: RetriesOption = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Import pairs from a data set; repeating it stores nothing twice.

    Common names of fields are known (problem, question, prompt, instruction with input; solution,
    answer, response, output, completion; messages), others are named with --map. Without a field
    for it, the reference is what the solution marks: #### 42, \\boxed{42} or a line Answer: 42.
    Lines that cannot be read or are refused go to a file of their own, and the rest goes on. Where
    a quota is used up the command stops, and goes on from there when it is given again.
    """
    plan = make_plan(file, map, preset, verifier, source, stratum)
    importer = Importer(
        context.obj,
        PAIRS,
        partial(import_pair, plan=plan),
        partial(_tell, allow_unverified=allow_unverified),
        ImportOptions(
            file=file,
            rejected=rejected,
            resume=resume,
            strict=strict,
            retries=retries,
            output=output,
            identity=("pairs", repr(plan), rejected, allow_unverified),
        ),
    )
    raise typer.Exit(importer.run())


def make_plan(
    file: str, map_text: str, preset: Preset | None, verifier: str, source: str, stratum: str
) -> Plan:
    """Raises CliError."""
    try:
        fields = parse_map(map_text)
    except ValueError as error:
        raise CliError(f"--map: {error}", code=Exit.USAGE) from error
    stem = "" if file == STDIN else Path(file).name.split(".")[0]
    return Plan(fields, preset, verifier, source or stem, stratum)


def _tell(result: PairResult, *, allow_unverified: bool) -> Told:
    from opsd.daemon.cli.words import pair_status
    from opsd.v1.collection_pb2 import PAIR_STATUS_REFUSED_QUOTA

    status = pair_status(result.status) or "unspecified"
    if status in ("verified", "duplicate"):
        return Told("stored before" if result.already_stored else status)
    message = result.message or result.verdict.evidence
    if result.status == PAIR_STATUS_REFUSED_QUOTA:
        return Told(status, message, is_good=False, later=True)
    # Both are stored, and never trained on.
    refused = status not in ("unverified", "quarantined")
    is_good = status == "unverified" and allow_unverified
    return Told(status, message, refused=refused, is_good=is_good)


def export(
    context: typer.Context,
    file: Annotated[str, typer.Argument(help="JSON lines to write; `-`: stdout.")],
    status: Annotated[ExportStatus | None, typer.Option(help="Only these.")] = None,
    source: Annotated[str, typer.Option(help="Only of this source.")] = "",
    origin: Annotated[Origin | None, typer.Option(help="Only of this origin.")] = None,
    since: Annotated[
        str,
        typer.Option(help="Only stored then or later: 2026-01-31, 2026-01-31T12:00Z or seconds."),
    ] = "",
    resume: ResumeOption = True,
    retries: RetriesOption = 5,
) -> None:
    """Export pairs, oldest first, so that `opsd pairs import` reads them back.

    The file appears once it is whole; until then it is FILE.part, and a command that was
    interrupted goes on there.
    """
    from opsd.v1 import collection_pb2 as pb

    name = status.name if status is not None else "UNSPECIFIED"
    request = pb.ExportPairsRequest(
        status=pb.PairStatus.Value(f"PAIR_STATUS_{name}"),
        source=source,
        origin=origin or "",
        since_unix_s=unix_s(since),
    )

    def fetch(client: Client, seq: int) -> Iterator[ExportedPair]:
        request.after_seq = seq
        return client.stream(client.sources.ExportPairs, request)

    exporter = Exporter(
        context.obj,
        file,
        fetch,
        _record,
        lambda pair: pair.seq,
        identity=("pairs", name, source, origin, since),
        resume=resume,
        retries=retries,
    )
    say(f"{exporter.run()} pairs")


def _record(pair: ExportedPair) -> dict[str, Any]:
    import json

    from opsd.daemon.cli.words import pair_verdict

    given = pair.input
    record: dict[str, Any] = {
        "id": given.id,
        "prompt": given.prompt,
        "solution": given.solution,
        "verifier": given.verifier,
        "reference": given.reference,
        "source": given.source,
        "stratum": given.stratum,
        "origin": pair.origin,
        "status": pair.status,
        "submitter": pair.submitter,
        "created_unix_s": pair.created_unix_s,
        "verdict": {"kind": pair_verdict(pair.verdict.kind), "evidence": pair.verdict.evidence},
    }
    if pair.provenance_json:
        record["provenance"] = json.loads(pair.provenance_json)
    return record


def unix_s(text: str) -> float:
    """A day, a time (UTC unless it says otherwise) or seconds since the epoch; "": 0.

    Raises CliError.
    """
    if not text:
        return 0.0
    try:
        return float(text)
    except ValueError:
        pass
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise CliError(
            f"--since {text!r} is no time", hint="write it like 2026-01-31", code=Exit.USAGE
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def add_to(app: typer.Typer) -> None:
    app.command("import")(import_)
    app.command("export")(export)
