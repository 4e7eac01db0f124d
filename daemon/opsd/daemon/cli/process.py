"""`opsd serve` and `opsd demo`: they become another program."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import say
from opsd.daemon.cli.session import Session


def add_to(app: typer.Typer) -> None:
    app.command()(serve)
    app.command(
        context_settings={
            "ignore_unknown_options": True,
            "allow_extra_args": True,
            # The demo prints its own help.
            "help_option_names": [],
        }
    )(demo)


def serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="As `opsd --config`.")] = None,
    roll_back: Annotated[
        str,
        typer.Option(
            metavar="REASON",
            help="Should the files of what serves be damaged, roll back, for this reason.",
        ),
    ] = "",
) -> None:
    """Run the daemon in the foreground, until SIGTERM or Ctrl-C."""
    from opsd.daemon.config.load import find_config

    session: Session = context.obj
    path = find_config(config or session.config, os.environ)
    if path is not None and not path.is_file():
        raise CliError(
            f"{path}: no such file",
            hint=f"make one with `opsd config init {path}`",
            code=Exit.NOT_FOUND,
        )
    arguments = [] if path is None else ["--config", str(path)]
    if roll_back:
        arguments += ["--roll-back", roll_back, "--actor", session.actor]
    _become("opsd.daemon.app", arguments)


def demo(context: typer.Context) -> None:
    """Run the whole loop on this machine, with a tiny model made for it (`opsd demo --help`)."""
    _become("opsd.daemon.demo", context.args)


def _become(module: str, arguments: list[str]) -> NoReturn:
    sys.stdout.flush()
    # -P: a file of the working directory must not stand in for an installed module.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        os.execv(sys.executable, command)
    except OSError as error:
        say(f"opsd: cannot start {sys.executable}: {error.strerror}")
        raise SystemExit(int(Exit.ERROR)) from error
