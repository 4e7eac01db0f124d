"""`opsd config`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, console, emit_json, say
from opsd.daemon.cli.session import Session

app = typer.Typer(help="The daemon's configuration.", no_args_is_help=True)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="As `opsd --config`.")]


@app.callback()
def _group() -> None:
    """The daemon's configuration."""


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write; `-`: stdout.")] = Path("opsd.toml"),
    model: Annotated[str, typer.Option(help="Directory of the model, to fill in.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a commented configuration file with every key."""
    from opsd.daemon.config.template import template

    text = template(model)
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise CliError(f"{path} exists", hint="--force overwrites it", code=Exit.REFUSED) from error
    except OSError as error:
        raise CliError(
            f"{path}: {error.strerror}", hint="name a file that can be written"
        ) from error
    say(
        f"{path} written"
        + ("" if model else ": set model.path in it, then run `opsd config check`")
    )


@app.command()
def check(
    context: typer.Context, config: ConfigOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Check the configuration, and that this machine has what it names; nothing is started."""
    from opsd.daemon.config.check import check_environment
    from opsd.daemon.config.load import read_config

    path = _path(context, config)
    loaded, problems = read_config(path, os.environ)
    if loaded is not None:
        problems = check_environment(loaded)
    if output is Output.JSON:
        names = ("key", "where", "message", "fix")
        emit_json({"problems": [{name: getattr(p, name) for name in names} for p in problems]})
    for problem in problems:
        say(f"opsd: {problem}")
    if problems:
        raise typer.Exit(Exit.INVALID_INPUT)
    say(f"{path or 'the configuration from the environment'}: no problem found")


@app.command()
def show(
    context: typer.Context, config: ConfigOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Print every value and where it came from; passwords are hidden."""
    from opsd.daemon.config.load import load_config
    from opsd.daemon.config.template import resolved, toml_value

    loaded = load_config(_path(context, config), os.environ)
    if output is Output.JSON:
        emit_json(
            {name: {"value": value, "origin": origin} for name, value, origin in resolved(loaded)}
        )
        return
    out = console()
    for name, value, origin in resolved(loaded):
        written = "unset" if value is None else toml_value(value)
        out.out(f"{name} = {written}", style=None if origin == "default" else "bold", end="")
        out.out(f"  # {origin}", style="dim")


def _path(context: typer.Context, config: Path | None) -> Path | None:
    from opsd.daemon.config.load import find_config

    session: Session = context.obj
    return find_config(config or session.config, os.environ)
