"""`opsd completion`."""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def add_to(app: typer.Typer) -> None:
    app.command()(completion)


def completion(
    context: typer.Context, shell: Annotated[Shell, typer.Argument(help="For which shell.")]
) -> None:
    """Print the shell's completion script, e.g. `source <(opsd completion bash)`."""
    # The command prints its script when it is run with this variable.
    os.environ["_OPSD_COMPLETE"] = f"source_{shell}"
    try:
        context.find_root().command(args=[], prog_name="opsd", complete_var="_OPSD_COMPLETE")
    finally:
        del os.environ["_OPSD_COMPLETE"]
