"""`opsd pairs quarantine|release|purge|stats|verify-again`: what operators do to stored pairs."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    emit_json,
    is_terminal,
    mebibytes,
    print_fields,
    print_table,
    say,
    to_dict,
    when,
)
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import (
        ChangePairsResponse,
        PairSelector,
        PairStats,
        TrainedRun,
    )
    from opsd.v1.collection_pb2_grpc import CurationServiceStub

IdsArgument = Annotated[list[str] | None, typer.Argument(help="UUIDs of pairs.", metavar="[ID]...")]
SubmitterOption = Annotated[str, typer.Option(help="All pairs of this submitter.")]
SourceOption = Annotated[str, typer.Option(help="All pairs of this source.")]
OriginOption = Annotated[
    str,
    typer.Option(
        help="All pairs of this origin: submitted, imported, feedback, own_attempt, "
        "self_consistency or self_play."
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why; it goes into the audit log.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


class VerifiedAgain(StrEnum):
    UNVERIFIED = "unverified"
    VERIFIED = "verified"


def add_to(app: typer.Typer) -> None:
    app.command()(quarantine)
    app.command()(release)
    app.command()(purge)
    app.command()(stats)
    app.command("verify-again")(verify_again)


def quarantine(
    context: typer.Context,
    reason: ReasonOption,
    ids: IdsArgument = None,
    submitter: SubmitterOption = "",
    source: SourceOption = "",
    origin: OriginOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep pairs apart: runs no longer draw them, until they are released.

    Pairs must match all that is given. Pairs that come in later are not affected.
    """
    selector = _selector(ids, submitter, source, origin)
    _change(context.obj, "QuarantinePairs", selector, reason, dry_run, yes, output)


def release(
    context: typer.Context,
    reason: ReasonOption,
    ids: IdsArgument = None,
    submitter: SubmitterOption = "",
    source: SourceOption = "",
    origin: OriginOption = "",
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Take pairs out of quarantine, to what their verdicts say.

    Pairs whose problem a suite holds stay there.
    """
    selector = _selector(ids, submitter, source, origin)
    _change(context.obj, "ReleasePairs", selector, reason, dry_run, yes, output)


def purge(
    context: typer.Context,
    reason: ReasonOption,
    ids: IdsArgument = None,
    submitter: SubmitterOption = "",
    source: SourceOption = "",
    origin: OriginOption = "",
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Delete the shards of runs that trained on them, too."),
    ] = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Erase what pairs say, for good; the same content is refused when it comes again.

    Names the runs and the adapters that were trained on them.
    """
    selector = _selector(ids, submitter, source, origin)
    more: dict[str, Any] = {"delete_shards": shards}
    _change(context.obj, "PurgePairs", selector, reason, dry_run, yes, output, more)


def stats(
    context: typer.Context,
    submitter: SubmitterOption = "",
    source: SourceOption = "",
    origin: OriginOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Count pairs by status, source, submitter and origin; how much of the quotas is used."""
    from opsd.v1.collection_pb2 import GetPairStatsRequest

    session: Session = context.obj
    request = GetPairStatsRequest(selector=_selector(None, submitter, source, origin))
    with session.connect() as client:
        found = client.call(_curation(client).GetPairStats, request)
    if output is Output.JSON:
        emit_json(found)
        return
    columns = ("", "verified", "unverified", "quarantined", "purged", "size")
    for title, rows in (
        ("all", [found.total]),
        ("source", found.by_source),
        ("submitter", found.by_submitter),
        ("origin", found.by_origin),
    ):
        print_table((title, *columns[1:]), map(_cells, rows), right=columns[1:])
    _print_quotas(found)


def verify_again(
    context: typer.Context,
    ids: IdsArgument = None,
    status: Annotated[
        VerifiedAgain, typer.Option(help="Pairs of this status.")
    ] = VerifiedAgain.UNVERIFIED,
    failed: Annotated[
        bool,
        typer.Option("--failed", help="Also those that failed, not only those with an error."),
    ] = False,
    submitter: SubmitterOption = "",
    source: SourceOption = "",
    origin: OriginOption = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Run the verifiers again: on pairs that they could not judge, or on others.

    A verified pair that fails now is not trained on any more. With -o json each result is a line on
    stdout.
    """
    from opsd.daemon.cli.words import pair_status
    from opsd.v1 import collection_pb2 as pb

    session: Session = context.obj
    request = pb.ReverifyPairsRequest(
        selector=_selector(ids, submitter, source, origin),
        status=pb.PairStatus.Value(f"PAIR_STATUS_{status.name}"),
        failed_too=failed,
        actor=session.actor,
    )
    counts: Counter[str] = Counter()
    with session.connect() as client:
        for result in client.stream(_curation(client).ReverifyPairs, request):
            counts[pair_status(result.status)] += 1
            if output is Output.JSON:
                emit_json(to_dict(result), line=True)
    parts = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    text = f"{counts.total()} verified again" + (f": now {parts}" if parts else "")
    if output is Output.JSON:
        say(text)
    else:
        print(text)


def _change(
    session: Session,
    method: str,
    selector: PairSelector,
    reason: str,
    dry_run: bool,
    yes: bool,
    output: Output,
    more: dict[str, Any] | None = None,
) -> None:
    """Says what would happen, asks, and does it."""
    from opsd.v1 import collection_pb2 as pb

    if not reason.strip():
        raise CliError(
            "--reason is empty", hint="say why: it goes into the audit log", code=Exit.USAGE
        )
    if not (selector.ids or selector.submitter or selector.source or selector.origin):
        raise CliError(
            "which pairs?",
            hint="name ids, --submitter, --source or --origin",
            code=Exit.USAGE,
        )
    kind = pb.PurgePairsRequest if method == "PurgePairs" else pb.ChangePairsRequest
    request: Any = kind(selector=selector, reason=reason, actor=session.actor, **(more or {}))
    done = _DONE[method]
    with session.connect() as client:
        call = getattr(_curation(client), method)
        if not dry_run and not yes:
            request.dry_run = True
            planned: ChangePairsResponse = client.stream(call, request)
            request.dry_run = False
            _ask(f"{done.capitalize()}: {_what(planned)}. Go on?")
        request.dry_run = dry_run
        # Of a million pairs it takes minutes.
        response: ChangePairsResponse = client.stream(call, request)
    if output is Output.JSON:
        emit_json(response)
        return
    would = "would be " if dry_run else ""
    print(f"{response.num_pairs} pairs {would}{done}")
    if response.runs:
        print_table(("run", "state", "pairs", "adapters", "shard"), map(_run_cells, response.runs))
    if response.num_held_out:
        say(f"opsd: {response.num_held_out} stay in quarantine: a suite holds their problems")
    elif response.num_pairs < (num_named := len(set(selector.ids))):
        say(
            f"opsd: {num_named} named: what is missing is not stored, does not match the options, "
            "or was so already"
        )
    if response.audit_id:
        say(f"audit entry {response.audit_id}")


_DONE = {
    "QuarantinePairs": "put into quarantine",
    "ReleasePairs": "released",
    "PurgePairs": "purged",
}


def _ask(question: str) -> None:
    """Where nobody can answer, --yes has to say it."""
    if not is_terminal():
        raise CliError(
            "not confirmed: nothing was changed",
            hint="look with --dry-run, then confirm with --yes",
            code=Exit.USAGE,
        )
    if not typer.confirm(question, err=True):
        raise CliError("declined: nothing has changed")


def _what(planned: ChangePairsResponse) -> str:
    adapters = {name for run in planned.runs for name in run.adapters}
    trained = f", trained on by {len(planned.runs)} runs ({len(adapters)} adapters)"
    return f"{planned.num_pairs} pairs" + (trained if planned.runs else "")


def _selector(ids: list[str] | None, submitter: str, source: str, origin: str) -> PairSelector:
    from opsd.v1.collection_pb2 import PairSelector

    return PairSelector(ids=ids or [], submitter=submitter, source=source, origin=origin)


def _curation(client: Client) -> CurationServiceStub:
    from opsd.v1.collection_pb2_grpc import CurationServiceStub

    return CurationServiceStub(client.channel)


def _run_cells(run: TrainedRun) -> tuple[str, ...]:
    shard = run.shard_path or "-"
    if run.shard_path and not run.shard_exists:
        shard = f"{run.shard_path} (deleted)"
    pairs = str(run.num_pairs) if run.num_pairs else f"through {run.through}"
    return (run.run_id, run.state, pairs, ", ".join(run.adapters) or "-", shard)


def _cells(row: PairStats.Row) -> tuple[str, ...]:
    counts = (row.verified, row.unverified, row.quarantined, row.purged)
    return (brief(row.name) or "-", *map(str, counts), mebibytes(row.size_bytes))


def _print_quotas(stats: PairStats) -> None:
    if not stats.quotas:
        return
    limits = (stats.pairs_per_day, stats.bytes_per_day, stats.max_pairs_stored)
    print_table(
        ("quota of", "pairs today", "bytes today", "stored"),
        (
            (
                brief(quota.submitter),
                *(
                    f"{used} of {limit}" if limit else str(used)
                    for used, limit in zip(
                        (quota.pairs_today, quota.bytes_today, quota.pairs_stored),
                        limits,
                        strict=True,
                    )
                ),
            )
            for quota in stats.quotas
        ),
    )
    print_fields([("days begin anew", when(stats.quota_resets_unix_s))])
