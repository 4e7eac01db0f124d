"""`opsd adapters export` and `opsd adapters verify`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.output import Output, OutputOption, emit_json, print_fields, say, when
from opsd.daemon.cli.public_keys import PublicKeyOption, read_ring
from opsd.daemon.cli.session import Session
from opsd.daemon.types.manifest import (
    ADAPTER_FILES,
    MANIFEST_NAME,
    PUBLIC_KEY_NAME,
    ManifestProblem,
    check_contents,
)

if TYPE_CHECKING:
    from opsd.v1.admin_pb2 import FilePiece

_FILES = (*ADAPTER_FILES, MANIFEST_NAME, PUBLIC_KEY_NAME)


def add_to(app: typer.Typer) -> None:
    app.command()(export)
    app.command()(verify)


def export(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An adapter's name; a unique prefix will do.")],
    directory: Annotated[Path, typer.Argument(help="Directory to make.")],
) -> None:
    """Copy a promoted adapter here, with its signed manifest and the public key."""
    from opsd.v1.admin_pb2 import ExportAdapterRequest

    if directory.exists():
        raise CliError(f"{directory} exists", hint="name a new directory", code=Exit.REFUSED)
    incoming = directory.with_name(f".{directory.name}.{os.getpid()}")
    session: Session = context.obj
    try:
        incoming.mkdir(parents=True)
        with session.connect() as client:
            pieces = client.stream(client.admin.ExportAdapter, ExportAdapterRequest(name=name))
            _write(pieces, incoming)
        missing = [file for file in _FILES if not (incoming / file).exists()]
        if missing:
            raise CliError(f"the daemon sent no {missing[0]}")
        incoming.rename(directory)
    except OSError as error:
        raise CliError(f"{directory}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(incoming, ignore_errors=True)
    say(f"{directory}: {', '.join(_FILES)}")


def _write(pieces: Iterable[FilePiece], directory: Path) -> None:
    for piece in pieces:
        if piece.file not in _FILES:
            raise CliError(f"the daemon sent a file {piece.file[:80]!r}, which is none of ours")
        with (directory / piece.file).open("ab") as file:
            file.write(piece.data)


def verify(
    directory: Annotated[Path, typer.Argument(help="An exported adapter.")],
    public_key: PublicKeyOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check an exported adapter against its manifest, without a daemon.

    The key beside the adapter proves nothing: get it from the daemon's operator. Exits with 7 when
    a file or the signature is not what it should be.
    """
    from opsd.daemon.types.signatures import MANIFEST_TYPE, SignatureProblem, unseal

    if not public_key:
        raise CliError(
            "--public-key is missing",
            hint="`opsd keys show --pem > key.pem` at the daemon that promoted it gets the key",
            code=Exit.USAGE,
        )
    trusted = read_ring(public_key)
    path = directory / MANIFEST_NAME
    try:
        statement = unseal(MANIFEST_TYPE, path.read_bytes(), trusted)
        extra = sorted({entry.name for entry in os.scandir(directory)} - set(_FILES))
        if extra:
            raise ManifestProblem(f"{directory / extra[0]}: no manifest speaks of it")
        check_contents(statement, directory)
    except SignatureProblem as error:
        raise CliError(f"{path}: {error}", code=Exit.NEGATIVE_OUTCOME) from error
    except ManifestProblem as error:
        raise CliError(str(error), code=Exit.NEGATIVE_OUTCOME) from error
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", code=Exit.NOT_FOUND) from error
    if output is Output.JSON:
        emit_json(statement)
        return
    print_fields(_fields(statement))
    say("every file is what the manifest says")


def _fields(statement: dict[str, Any]) -> list[tuple[str, str]]:
    def text(*path: str) -> str:
        value: Any = statement
        for name in path:
            value = value.get(name, "") if isinstance(value, dict) else ""
        return str(value)

    approvals = statement.get("approvals")
    return [
        ("adapter", text("adapter", "name")),
        ("sha256", text("adapter", "sha256")),
        ("base", text("base_fingerprint")),
        ("run", text("run", "id")),
        ("data", text("run", "shard_sha256")),
        ("gate", text("gate", "verdict")),
        ("decision", f"{text('decision', 'action')}, epoch {text('decision', 'epoch')}"),
        ("before", text("decision", "incumbent_before")),
        ("approved", "\n".join(_approval(item) for item in approvals or ())),
        ("code", f"{text('code', 'version')} {text('code', 'commit')}".strip()),
        ("audit", f"{text('audit', 'id')}:{text('audit', 'sha256')}"),
        ("key", text("key_id")),
    ]


def _approval(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    time_unix_s = item.get("time_unix_s")
    time = when(time_unix_s) if isinstance(time_unix_s, int | float) else ""
    return f"{item.get('actor', '')}, {time}: {item.get('reason', '')}"
