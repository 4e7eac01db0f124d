"""docs/reference/cli.md, made from the commands and the tables of exit codes.

``python -m opsd.daemon.cli.reference > docs/reference/cli.md``
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import typer

from opsd.daemon.cli.exits import BY_STATUS, MEANING
from opsd.daemon.cli.main import app

_HEAD = """\
# Command line

<!-- Made from the commands by `python -m opsd.daemon.cli.reference`: edit them there. -->

`opsd` talks gRPC to the daemon. Data goes to stdout, messages, prompts and progress bars to stderr.
`-o json` prints proto3 JSON with snake_case names (64-bit integers are strings in it, as proto3
JSON has them); commands that follow something print one JSON object a line. Bars and questions
appear on a terminal only; `NO_COLOR` is respected. An error is one line, `opsd: …`, often followed
by a `hint: …`; `OPSD_DEBUG=1` shows the traceback instead. Global options stand before the command:
`opsd --address host:50051 status`.

`--actor` travels with every call as the metadata `x-opsd-actor` and in the requests that have an
actor: it is what the audit log shows.

Shell completion: `source <(opsd completion bash)`, `source <(opsd completion zsh)`,
`opsd completion fish | source`; `opsd --install-completion` makes it last.
"""


def render() -> str:
    """The page's text."""
    out = [_HEAD, "## Exit codes\n", _exit_codes()]
    command = typer.main.get_command(app)
    context: Any = command.make_context("opsd", [], resilient_parsing=True)
    out.append("## Global options\n")
    out.append(_options(command, context))
    out.extend(_commands(command, context))
    return "\n".join(out)


def _exit_codes() -> str:
    lines = ["| code | meaning | gRPC status |", "|---|---|---|"]
    for code, meaning in MEANING.items():
        statuses = ", ".join(name for name, found in BY_STATUS.items() if found is code)
        lines.append(f"| {int(code)} | {meaning} | {statuses} |")
    return "\n".join(lines) + "\n"


def _commands(group: Any, context: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        path = f"{context.info_name} {name}"
        below: Any = type(context)(command, info_name=path)
        if hasattr(command, "commands"):
            yield from _commands(command, below)
            continue
        arguments = " ".join(
            f"[{p.name.upper()}]" if not p.required else p.name.upper()
            for p in command.params
            if p.param_type_name == "argument"
        )
        yield f"## {path}\n"
        yield f"`{path}{' [OPTIONS]' if _has_options(command) else ''} {arguments}".rstrip() + "`\n"
        yield "\n".join(line.strip() for line in (command.help or "").splitlines()) + "\n"
        table = _options(command, below)
        if table:
            yield table


def _has_options(command: Any) -> bool:
    return any(parameter.param_type_name == "option" for parameter in command.params)


def _options(command: Any, context: Any) -> str:
    rows = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            rows.append(f"| `{parameter.name.upper()}` | {_cell(parameter.help)} |")
            continue
        if parameter.name in ("install_completion", "show_completion"):
            continue
        record = parameter.get_help_record(context)
        names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        needed = " Required." if parameter.required else ""
        rows.append(f"| {names} | {_cell(record[1] if record else '')}{needed} |")
    return "\n".join(["| option | what |", "|---|---|", *rows]) + "\n" if rows else ""


def _cell(text: str | None) -> str:
    plain = " ".join((text or "").replace("[required]", "").split())
    return plain.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    sys.stdout.write(render())
