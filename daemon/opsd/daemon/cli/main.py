"""The console script `opsd`: the commands, and how every failure ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from opsd.daemon.cli import (
    adapters,
    attempts,
    audit,
    completion,
    configuration,
    doctor,
    gate,
    generate,
    pairs,
    problems,
    process,
    public_keys,
    runs,
    signed_adapters,
    status,
    suites,
    version,
)
from opsd.daemon.cli.compare import command as compare
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.session import DEFAULT_ADDRESS, Session, check_actor, default_actor
from opsd.daemon.errors import ConfigError


class ReaderGone(Exception):
    """Whoever read stdout went away."""


class _Root(TyperGroup):
    """typer itself would turn a closed pipe into exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


app = typer.Typer(
    name="opsd",
    cls=_Root,
    help="A served language model that gets better at its own job, under control.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich costs a fifth of a second at every --help
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
process.add_to(app)
status.add_to(app)
generate.add_to(app)
app.add_typer(pairs.app, name="pairs")
app.add_typer(problems.app, name="problems")
app.add_typer(attempts.app, name="attempts")
app.add_typer(runs.app, name="runs")
compare.add_to(app)
signed_adapters.add_to(adapters.app)
app.add_typer(adapters.app, name="adapters")
app.add_typer(gate.app, name="gate")
app.add_typer(suites.app, name="suites")
app.add_typer(audit.app, name="audit")
app.add_typer(public_keys.app, name="keys")
app.add_typer(configuration.app, name="config")
doctor.add_to(app)
completion.add_to(app)
version.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        version.print_version()
        raise typer.Exit()


@app.callback()
def root(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(envvar="OPSD_ADDRESS", help="Where the daemon's gRPC port is.")
    ] = DEFAULT_ADDRESS,
    timeout: Annotated[
        float | None,
        typer.Option(
            envvar="OPSD_TIMEOUT",
            min=0.001,
            metavar="SECONDS",
            help="Seconds to wait for an answer; default: 60, and no limit for streams.",
        ),
    ] = None,
    actor: Annotated[
        str | None,
        typer.Option(envvar="OPSD_ACTOR", help="Who asks, for the audit log; default: user@host."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Configuration file; default: $OPSD_CONFIG, ./opsd.toml, /etc/opsd/opsd.toml."
        ),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_version
        ),
    ] = False,
) -> None:
    who = check_actor(actor) if actor is not None else default_actor()
    context.obj = Session(address, timeout, who, config)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    try:
        result = app(list(arguments), prog_name="opsd", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as exit_:
        # Shell completion and a pipe that closed under --help end like this.
        return exit_.code if isinstance(exit_.code, int) else Exit.ERROR
    except (BrokenPipeError, ReaderGone):
        _abandon_stdout()
        return Exit.BROKEN_PIPE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except typer.Abort:
        return Exit.ERROR
    except Exception as error:
        if os.environ.get("OPSD_DEBUG") == "1":
            raise
        return _report(error)
    return result if isinstance(result, int) else Exit.OK


def _report(error: Exception) -> int:
    """Says what went wrong in one line and a hint; never a traceback."""
    if isinstance(error, CliError):
        return _say(error.message, error.hint, error.code)
    if isinstance(error, ConfigError):
        return _say(str(error), "", Exit.INVALID_INPUT)
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "opsd"
        if error.format_message().startswith("Usage:"):  # a group was called without a command
            print(error.format_message(), file=sys.stderr)
            return Exit.USAGE
        return _say(error.format_message(), f"see `{path} --help`", Exit.USAGE)
    detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    hint = "" if isinstance(error, OSError) else "OPSD_DEBUG=1 shows where"
    return _say(str(error) if isinstance(error, OSError) else detail, hint, Exit.ERROR)


def _say(message: str, hint: str, code: Exit) -> int:
    try:
        print(f"opsd: {message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        pass
    return code


def _abandon_stdout() -> None:
    """Points stdout to nowhere, so that the interpreter's last flush does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main() -> None:
    interrupted = False

    def on_interrupt(number: int, frame: object) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    # Python drops an exception that a signal raises inside a finaliser or a C callback, and gRPC
    # has both: an interrupted command must not look as if it had run to its end.
    signal.signal(signal.SIGINT, on_interrupt)
    code = run(sys.argv[1:])
    sys.exit(int(Exit.INTERRUPTED if interrupted else code))


if __name__ == "__main__":
    main()
