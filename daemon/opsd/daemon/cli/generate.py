"""`opsd generate`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, clean, emit_json, say
from opsd.daemon.cli.session import Client, Session

if TYPE_CHECKING:
    from opsd.v1.inference_pb2 import FinishReason, GenerateRequest, Usage


def add_to(app: typer.Typer) -> None:
    app.command()(generate)


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; left out or `-`: read from stdin.")
    ] = None,
    adapter: Annotated[
        str, typer.Option(help="An adapter's full name, or `base`; default: the daemon's routing.")
    ] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="The prompt as it is, without the chat template.")
    ] = False,
    system: Annotated[str, typer.Option(help="System message; not with --raw.")] = "",
    thinking: Annotated[
        bool, typer.Option("--thinking", help="The chat template's enable_thinking.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="New tokens at most.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, max=10.0, help="0 is greedy; the daemon's default: 1.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="1 is off.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="0 is off.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="Of sampling.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop at this string; may be repeated.")
    ] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on past the end-of-sequence token.")
    ] = False,
    stream: Annotated[
        bool | None,
        typer.Option("--stream/--no-stream", help="As it is made; default: on a terminal."),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Ask the served model; the text goes to stdout, the adapter that made it to stderr."""
    from opsd.v1 import inference_pb2 as pb

    if raw and (system or thinking):
        raise CliError("--system and --thinking need the chat template", code=Exit.USAGE)
    request = pb.GenerateRequest(adapter=adapter, enable_thinking=thinking)
    text = _prompt(prompt)
    if raw:
        request.prompt = text
    else:
        if system:
            request.conversation.messages.add(role="system", content=system)
        request.conversation.messages.add(role="user", content=text)
    request.sampling.CopyFrom(
        pb.SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            stop=stop or (),
            ignore_eos=ignore_eos,
        )
    )
    session: Session = context.obj
    with session.connect() as client:
        if stream if stream is not None else sys.stdout.isatty():
            _streamed(client, request, output)
        else:
            _whole(client, request, output)


def _prompt(argument: str | None) -> str:
    if argument is not None and argument != "-":
        # What is not UTF-8 on the command line arrives as lone surrogates.
        if not argument.isprintable():
            _check_utf8(argument)
        return argument
    if argument is None and sys.stdin.isatty():
        raise CliError(
            "no prompt", hint="give it as an argument, or on stdin with `-`", code=Exit.USAGE
        )
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise CliError(
            f"stdin: byte {error.start} is not UTF-8", code=Exit.INVALID_INPUT
        ) from error
    if not text.strip():
        raise CliError("stdin: the prompt is empty", code=Exit.INVALID_INPUT)
    return text


def _check_utf8(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CliError(
            f"the prompt's character {error.start} is not UTF-8", code=Exit.INVALID_INPUT
        ) from error


def _show(text: str) -> str:
    """On a terminal, without what could drive it."""
    return clean(text, keep_lines=True) if sys.stdout.isatty() else text


def _whole(client: Client, request: GenerateRequest, output: Output) -> None:
    # A completion takes as long as it takes, whole or in pieces.
    response = client.stream(client.inference.Generate, request)
    if output is Output.JSON:
        emit_json(response)
        return
    print(_show(response.text))
    _footer(response.adapter, response.usage, response.finish_reason, response.attempt_id)


def _streamed(client: Client, request: GenerateRequest, output: Output) -> None:
    adapter = ""
    last = None
    for chunk in client.stream(client.inference.GenerateStream, request):
        if adapter and chunk.adapter != adapter:
            raise CliError(
                f"the response mixes adapters {adapter} and {chunk.adapter}: "
                "this is a fault of the daemon"
            )
        adapter, last = chunk.adapter, chunk
        if output is Output.JSON:
            emit_json(chunk, line=True)
        else:
            print(_show(chunk.text_delta), end="", flush=True)
    if output is Output.JSON:
        return
    print()
    if last is not None:
        _footer(adapter, last.usage, last.finish_reason, last.attempt_id)


def _footer(adapter: str, usage: Usage, reason: FinishReason.ValueType, attempt_id: str) -> None:
    from opsd.daemon.cli.words import finish_reason

    attempt = f", attempt {attempt_id}" if attempt_id else ""
    say(
        f"adapter {clean(adapter)}: {usage.completion_tokens} tokens "
        f"for {usage.prompt_tokens}, {finish_reason(reason) or 'unfinished'}{attempt}"
    )
