"""Public keys on the command line, and `opsd keys`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, emit_json, print_table, say
from opsd.daemon.cli.session import Session

if TYPE_CHECKING:
    from opsd.daemon.types.signatures import KeyRing

app = typer.Typer(help="The keys that sign manifests and the audit log.", no_args_is_help=True)

PublicKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key",
        metavar="KEY",
        help="A trusted public key: a PEM file, or ed25519:BASE64; may be given several times.",
    ),
]


@app.callback()
def _group() -> None:
    """The keys that sign manifests and the audit log."""


@app.command()
def show(
    context: typer.Context,
    pem: Annotated[bool, typer.Option("--pem", help="Only the daemon's own key, in PEM.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the daemon's public key and the others it trusts."""
    from opsd.v1.admin_pb2 import GetSigningKeysRequest

    session: Session = context.obj
    with session.connect() as client:
        keys = client.call(client.admin.GetSigningKeys, GetSigningKeysRequest())
    if pem:
        print(keys.own.pem, end="")
    elif output is Output.JSON:
        emit_json(keys)
    else:
        print_table(
            ("id", "key", ""),
            (
                (key.id, key.text, "signs" if key.id == keys.own.id else "trusted")
                for key in keys.trusted
            ),
        )


def read_ring(given: list[str]) -> KeyRing:
    """The keys that were named on the command line; raises CliError."""
    from opsd.daemon.types.signatures import PREFIX, SignatureProblem, parse_public_key, ring

    keys = []
    for text in given:
        try:
            if text.startswith(PREFIX):
                keys.append(parse_public_key(text))
            else:
                keys.append(parse_public_key(Path(text).read_text(encoding="utf-8")))
        except SignatureProblem as error:
            raise CliError(f"--public-key {text[:80]}: {error}", code=Exit.INVALID_INPUT) from error
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"--public-key {text[:80]}: {error}", code=Exit.NOT_FOUND) from error
    say(f"trusting {', '.join(key.id for key in keys)}")
    return ring(keys)
