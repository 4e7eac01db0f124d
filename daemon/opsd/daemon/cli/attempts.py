"""`opsd attempts`."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from opsd.daemon.cli.exits import BY_STATUS, CliError, Exit
from opsd.daemon.cli.imports import Importer, ImportOptions, Told
from opsd.daemon.cli.jsonl import LineError, check_text, parse_object
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    clean,
    emit_json,
    print_fields,
    to_dict,
    when,
)
from opsd.daemon.cli.session import Session
from opsd.daemon.cli.submit import ANSWERS, OUTCOMES, Call
from opsd.daemon.cli.transfer import RetriesOption

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import (
        AnswerResult,
        AttemptOutcome,
        OutcomeResult,
        PairResult,
        SubmitAnswerRequest,
        SubmitOutcomeRequest,
    )

Request = TypeVar("Request")
Result = TypeVar("Result")

app = typer.Typer(help="Completions that were served, and what became of them.")

IdArgument = Annotated[str, typer.Argument(help="The attempt's id, from the response.")]
FileOption = Annotated[
    str, typer.Option("--file", help="JSON lines instead of one attempt; `-`: stdin.")
]


class Outcome(StrEnum):
    ACCEPTED = "accepted"
    REJECTED = "rejected"


@app.callback()
def _group() -> None:
    """Completions that were served, and what became of them."""


@app.command()
def show(
    context: typer.Context,
    id: IdArgument,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one attempt and its outcomes."""
    from opsd.daemon.cli.words import attempt_outcome
    from opsd.v1.collection_pb2 import GetAttemptRequest, ListOutcomesRequest

    session: Session = context.obj
    with session.connect() as client:
        attempt = client.call(client.collection.GetAttempt, GetAttemptRequest(id=id))
        request = ListOutcomesRequest(attempt_id=attempt.id)
        outcomes = client.call(client.sources.ListOutcomes, request).outcomes
    if output is Output.JSON:
        emit_json(to_dict(attempt) | {"outcomes": [to_dict(outcome) for outcome in outcomes]})
        return

    def in_words(outcome: AttemptOutcome) -> tuple[str, str]:
        said = f"{attempt_outcome(outcome.outcome)} by {outcome.reporter}"
        text = f"{said}, {when(outcome.created_unix_s)}"
        name = "verified" if outcome.verified else "reported"
        return name, f"{text}: {outcome.comment}" if outcome.comment else text

    print_fields(
        [
            ("id", attempt.id),
            ("adapter", attempt.adapter),
            ("request", attempt.request_id),
            ("created", when(attempt.created_unix_s)),
            ("tokens", str(attempt.completion_tokens)),
            ("comment", attempt.comment),
            *(in_words(outcome) for outcome in outcomes),
            ("prompt", attempt.prompt),
            ("completion", clean(attempt.completion, keep_lines=True)),
        ]
    )


@app.command()
def answer(
    context: typer.Context,
    id: IdArgument = "",
    reference: Annotated[str, typer.Option(help="The true answer.")] = "",
    verifier: Annotated[str, typer.Option(help="How it is compared.")] = "math",
    solution: Annotated[str, typer.Option(help="A worked solution: a pair of its own.")] = "",
    source: Annotated[str, typer.Option(help="Source of what comes of it.")] = "",
    file: FileOption = "",
    retries: RetriesOption = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Send the true answer to an attempt: the daemon verifies what the model wrote against it.

    An attempt that passes becomes a pair; one that fails becomes a problem for the model to try
    again. A line of --file is an object with attempt_id and reference and, if wanted, verifier,
    solution, source and stratum.
    """
    from opsd.v1.collection_pb2 import SubmitAnswerRequest

    defaults = {"verifier": verifier, "source": source}
    if file:
        _refuse_both(id)

        def parse(raw: bytes) -> SubmitAnswerRequest:
            known = ("verifier", "solution", "source", "stratum")
            fields = _fields(raw, ("attempt_id", "reference"), known)
            return SubmitAnswerRequest(**{**defaults, **fields})

        _send_all(context, file, ANSWERS, parse, _tell_answer, retries, output)
    session: Session = context.obj
    if not id or not reference:
        raise CliError("name an attempt and its --reference, or a --file", code=Exit.USAGE)
    request = SubmitAnswerRequest(attempt_id=id, reference=reference, solution=solution, **defaults)
    with session.connect() as client:
        result = client.call(client.sources.SubmitAnswer, request)
    _print_answer(result, output)
    raise typer.Exit(Exit.OK if _tell_answer(result).is_good else Exit.NEGATIVE_OUTCOME)


@app.command()
def outcome(
    context: typer.Context,
    id: IdArgument = "",
    outcome: Annotated[Outcome | None, typer.Argument(help="What became of it.")] = None,
    comment: Annotated[str, typer.Option(help="Kept beside it.")] = "",
    file: FileOption = "",
    retries: RetriesOption = 5,
    output: OutputOption = Output.TABLE,
) -> None:
    """Report what became of an attempt: for statistics, not evidence for training.

    A line of --file is an object with attempt_id and outcome (accepted or rejected) and, if wanted,
    comment. The first outcome stands.
    """
    from opsd.v1 import collection_pb2 as pb

    def request(attempt_id: str, word: str, text: str) -> SubmitOutcomeRequest:
        kind = pb.AttemptOutcomeKind.Value(f"ATTEMPT_OUTCOME_KIND_{word.upper()}")
        return pb.SubmitOutcomeRequest(attempt_id=attempt_id, outcome=kind, comment=text)

    if file:
        _refuse_both(id)

        def parse(raw: bytes) -> SubmitOutcomeRequest:
            fields = _fields(raw, ("attempt_id", "outcome"), ("comment",))
            word = fields["outcome"]
            if word not in set(Outcome):
                raise LineError(f"outcome: {clean(word)[:40]!r} is neither accepted nor rejected")
            return request(fields["attempt_id"], word, fields.get("comment", ""))

        _send_all(context, file, OUTCOMES, parse, _tell_outcome, retries, output)
    session: Session = context.obj
    if not id or outcome is None:
        raise CliError("name an attempt and accepted or rejected, or a --file", code=Exit.USAGE)
    with session.connect() as client:
        result = client.call(client.sources.SubmitOutcome, request(id, outcome.value, comment))
    if output is Output.JSON:
        emit_json(result)
    else:
        print(_tell_outcome(result).status)


def _refuse_both(id: str) -> None:
    if id:
        raise CliError("name one attempt or a --file, not both", code=Exit.USAGE)


def _send_all(
    context: typer.Context,
    file: str,
    call: Call[Request, Result],
    parse: Callable[[bytes], Request],
    tell: Callable[[Result], Told],
    retries: int,
    output: Output,
) -> None:
    """Ends the command."""
    options = ImportOptions(
        file, retries=retries, output=output, identity=("attempts", repr(parse.__qualname__))
    )
    raise typer.Exit(Importer(context.obj, call, parse, tell, options).run())


def _fields(raw: bytes, required: tuple[str, ...], known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, Any] = parse_object(raw)
    for name, value in found.items():
        if name not in (*required, *known):
            raise LineError(
                f"{clean(name)}: no such field; known: {', '.join((*required, *known))}"
            )
        if not isinstance(value, str):
            raise LineError(f"{name}: must be a string")
        check_text(name, value)
    for name in required:
        if not found.get(name, "").strip():
            raise LineError(f"{name}: is missing or empty")
    return found


def _tell_answer(result: AnswerResult) -> Told:
    from opsd.daemon.cli.words import pair_status, pair_verdict

    if result.error_code:
        return _told_error(result.error_code, result.message)
    pairs: list[PairResult] = []
    if result.HasField("own_pair"):
        pairs.append(result.own_pair)
    if result.HasField("solution_pair"):
        pairs.append(result.solution_pair)
    status = f"attempt {pair_verdict(result.verdict.kind)}ed"
    for pair in pairs:
        word = pair_status(pair.status)
        if word not in ("verified", "duplicate"):
            return Told(f"{status}, pair {word}", pair.message, is_good=False)
    return Told(status)


def _tell_outcome(result: OutcomeResult) -> Told:
    if result.error_code:
        return _told_error(result.error_code, result.message)
    return Told("stored before" if result.already_stored else "stored")


def _told_error(code: str, message: str) -> Told:
    name = BY_STATUS.get(code, Exit.ERROR).name.lower().replace("_", " ")
    return Told(name, message, refused=True, is_good=False)


def _print_answer(result: AnswerResult, output: Output) -> None:
    from opsd.daemon.cli.words import pair_status, pair_verdict

    if output is Output.JSON:
        emit_json(result)
        return

    def pair(found: PairResult) -> str:
        return f"{found.id} {pair_status(found.status)} {found.message}".strip()

    print_fields(
        [
            ("attempt", result.attempt_id),
            ("verdict", f"{pair_verdict(result.verdict.kind)}: {result.verdict.evidence}"),
            ("own pair", pair(result.own_pair) if result.HasField("own_pair") else ""),
            ("pair", pair(result.solution_pair) if result.HasField("solution_pair") else ""),
            ("kept as problem", result.problem_id),
        ]
    )
