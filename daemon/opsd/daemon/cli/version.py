"""`opsd version`."""

from __future__ import annotations

import platform

import typer

from opsd.daemon.cli.output import Output, OutputOption, emit_json


def add_to(app: typer.Typer) -> None:
    app.command()(version)


def version(output: OutputOption = Output.TABLE) -> None:
    """Print the version of this command (`opsd status` has the daemon's)."""
    if output is Output.JSON:
        emit_json({"opsd": installed_version(), "python": platform.python_version()})
    else:
        print_version()


def print_version() -> None:
    print(f"opsd {installed_version()}")


def installed_version() -> str:
    """Of the distribution; "unknown" in a source tree that was never installed."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as of

    try:
        return of("opsd")
    except PackageNotFoundError:
        return "unknown"
