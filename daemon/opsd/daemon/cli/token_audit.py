"""`opsd runs audit`: where a run pulled the model, token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import (
    Output,
    OutputOption,
    brief,
    clean,
    console,
    emit_json,
    percent,
    print_fields,
    print_table,
    say,
)
from opsd.daemon.cli.session import Client, Session
from opsd.daemon.cli.token_marks import LEGEND_LEVELS, Pull, Sort, marked, quoted, sized, styled
from opsd.daemon.cli.token_totals import Totals

if TYPE_CHECKING:
    from opsd.v1.token_audit_pb2 import Alternative, AuditedAttempt

_PROMPT_CHARS = 240


def add_to(app: typer.Typer) -> None:
    app.command()(audit)


def audit(
    context: typer.Context,
    id: Annotated[str, typer.Argument(help="A run's id; a unique prefix will do.")],
    step: Annotated[
        int | None, typer.Option(min=1, help="Of this step only; default: show the last one.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Show the attempts of every step.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Only this one of a step's attempts, from 1.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="So many rows in a table; 0: no tables.")] = 10,
    sort: Annotated[Sort, typer.Option(help="What puts a position first.")] = Sort.DIVERGENCE,
    plain: Annotated[
        bool, typer.Option("--plain", help="Marks in place of colours, as without a terminal.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show where and why a run pulled the model, token by token.

    The text of audited attempts, the positions that were pulled most, and which tokens took the
    most over all steps (with --step: over that one). JSON: one attempt a line, of all steps.
    """
    if step is not None and all_:
        raise CliError("--step and --all: give one of them", code=Exit.USAGE)
    session: Session = context.obj
    with session.connect() as client:
        attempts = _numbered(_received(client, id, step or 0))
        if output is Output.JSON:
            found = False
            for number, message in attempts:
                if attempt in (None, number):
                    emit_json(message, line=True)
                    found = True
            if not found:
                raise _no_attempt(attempt)
            return
        totals = Totals()
        shown: list[tuple[int, AuditedAttempt]] = []
        for number, message in attempts:
            totals.add(message)
            if step is None and not all_ and shown and shown[-1][1].step != message.step:
                shown.clear()
            shown.append((number, message))
    chosen = [(number, message) for number, message in shown if attempt in (None, number)]
    if not chosen:
        raise _no_attempt(attempt)
    _print_legend(plain)
    for number, message in chosen:
        _print_attempt(number, message, top, sort, plain)
    _print_totals(totals, top)
    if step is None and not all_ and len(totals.steps) > 1:
        say(f"shown is step {totals.steps[-1]}, the last one: --step N and --all show others")


def _received(client: Client, id: str, step: int) -> Iterator[AuditedAttempt]:
    from opsd.v1.admin_pb2 import ReadTokenAuditRequest

    request = ReadTokenAuditRequest(id=id, step=step)
    yield from client.stream(client.admin.ReadTokenAudit, request)


def _numbered(attempts: Iterable[AuditedAttempt]) -> Iterator[tuple[int, AuditedAttempt]]:
    """With its number within its step, from 1."""
    step = number = 0
    for attempt in attempts:
        number = number + 1 if attempt.step == step else 1
        step = attempt.step
        yield number, attempt


def _no_attempt(number: int | None) -> CliError:
    if number is None:
        return CliError("the run's audit holds no attempt", code=Exit.NOT_FOUND)
    return CliError(
        f"no attempt {number} there",
        hint="training.token_audit.attempts_per_step says how many a step writes down",
        code=Exit.NOT_FOUND,
    )


def _in_colour(plain: bool) -> bool:
    out = console()
    return not plain and out.is_terminal and not out.no_color and out.color_system is not None


def _print_legend(plain: bool) -> None:
    if not _in_colour(plain):
        print(
            "[+|token] the teacher wants it more, [-|token] less, [~|token] no teacher; one sign "
            f"more for each of {', '.join(f'{level:g}' for level in LEGEND_LEVELS)} nats of\n"
            "divergence; _ clipped, ? word of doubt, 0 shielded from the loss\n"
        )
        return
    from rich.text import Text

    legend = Text("the teacher wants it ")
    for sign, word in ((1, "more"), (-1, "less")):
        legend.append(f"{word} ")
        for level, bound in enumerate(LEGEND_LEVELS, 1):
            legend.append(f" {bound:g} ", styled(Pull(sign, level)))
        legend.append("  ")
    legend.append("nats of divergence;  ")
    legend.append("clipped", styled(Pull(0, 0, clipped=True)))
    legend.append(", ")
    legend.append("word of doubt", styled(Pull(0, 0, epistemic=True)))
    legend.append(", ")
    legend.append("shielded", styled(Pull(0, 0, shielded=True)))
    console().print(legend, "", sep="\n")


def _print_attempt(number: int, attempt: AuditedAttempt, top: int, sort: Sort, plain: bool) -> None:
    what = [f"step {attempt.step}, attempt {number}", f"{len(attempt.tokens)} tokens"]
    if attempt.HasField("passed"):
        verdict = "passed" if attempt.passed else "failed"
        what.append(f"{verdict} ({brief(attempt.evidence)})" if attempt.evidence else verdict)
    if attempt.truncated:
        what.append("truncated")
    print(", ".join(what))
    print_fields(
        [
            ("pair", attempt.pair_id),
            ("student reads", brief(attempt.prompt, _PROMPT_CHARS)),
            ("teacher reads", brief(attempt.teacher_prompt, _PROMPT_CHARS)),
        ]
    )
    print()
    pulls = [Pull.of(token) for token in attempt.tokens]
    if _in_colour(plain):
        from rich.text import Text

        text = Text()
        for token, pull in zip(attempt.tokens, pulls, strict=True):
            text.append(_visible(token.text), styled(pull))
        console().print(text, soft_wrap=True)
    else:
        pairs = zip(attempt.tokens, pulls, strict=True)
        print("".join(marked(_visible(token.text), pull) for token, pull in pairs))
    print()
    if top:
        _print_positions(attempt, top, sort)
        print()


def _visible(text: str) -> str:
    return clean(text.replace("\n", "⏎\n"), keep_lines=True)


def _print_positions(attempt: AuditedAttempt, top: int, sort: Sort) -> None:
    order = sorted(range(len(attempt.tokens)), key=lambda at: -sized(attempt.tokens[at], sort))
    if sort is Sort.POSITION:
        order = list(range(len(attempt.tokens)))
    rows = []
    for at in order[:top]:
        token = attempt.tokens[at]
        pull = Pull.of(token)
        rows.append(
            (
                str(at + 1),
                quoted(token.text, token.id),
                f"{token.student_logprob:.2f}",
                f"{token.teacher_logprob:.2f}" if pull.sign else "-",
                f"{token.divergence:.3f}",
                f"{token.loss:.3f}",
                f"{token.weight:g}",
                " ".join(pull.words()),
                f"{token.student_entropy:.2f}",
                f"{token.teacher_entropy:.2f}" if pull.sign else "-",
                _alternatives(token.student_top),
                _alternatives(token.teacher_top),
            )
        )
    columns = (
        *("at", "token", "student", "teacher", "divergence", "loss", "weight", "marks"),
        *("entropy", "teacher's", "student would say", "teacher would say"),
    )
    print_table(columns, rows, right=(*columns[:1], *columns[2:7], *columns[8:10]))


def _alternatives(top: Iterable[Alternative]) -> str:
    from math import exp

    return "  ".join(
        f"{quoted(entry.text, entry.id)} {100 * exp(entry.logprob):.3g}%" for entry in top
    )


def _print_totals(totals: Totals, top: int) -> None:
    steps = totals.steps
    print("over all that was read" if len(steps) > 1 else f"over step {steps[0]}")
    clipped = (
        f"{percent(totals.share(totals.clipped))} of the positions; clipping took "
        f"{percent(totals.clipped_share)} of the divergence"
    )
    doubt = (
        f"{percent(totals.share(totals.epistemic))} of the tokens, "
        f"{percent(totals.epistemic_share)} of the divergence; "
        f"{totals.shielded} of {totals.epistemic} shielded"
    )
    print_fields(
        [
            ("attempts", f"{totals.attempts} of {len(steps)} steps ({steps[0]} to {steps[-1]})"),
            ("verdicts", f"{totals.passed} of {totals.judged} passed" if totals.judged else ""),
            ("tokens", str(totals.tokens)),
            (
                "divergence",
                f"{totals.mean_divergence:.4f} nats a token, loss {totals.mean_loss:.4f}",
            ),
            ("clipped", clipped),
            ("doubt", doubt if totals.epistemic else "no words of doubt"),
            (
                "left out",
                f"{totals.not_finite} tokens whose divergence is not finite"
                if totals.not_finite
                else "",
            ),
        ]
    )
    if not top:
        return
    print()
    print_table(
        ("token", "times", "divergence", "share", "mean", "teacher - student", "clipped", "doubt"),
        (
            (
                quoted(text, group.id),
                str(group.count),
                f"{group.divergence:.3f}",
                percent(totals.part(group.divergence)),
                f"{group.divergence / group.count:.3f}",
                f"{group.gap / group.compared:+.2f}" if group.compared else "-",
                percent(group.clipped / group.count),
                "yes" if group.epistemic else "",
            )
            for text, group in totals.greatest(top)
        ),
        right=("times", "divergence", "share", "mean", "teacher - student", "clipped"),
    )
