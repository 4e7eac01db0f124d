"""What a promotion manifest says about an adapter's files, and whether it is true.

Needs no daemon: the command line checks an exported adapter with it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ADAPTER_FILES: Final = ("adapter_config.json", "adapter_model.safetensors")
"""In the order in which the content digest takes them (docs/reference/adapters.md)."""

MANIFEST_NAME: Final = "promotion.dsse.json"
PUBLIC_KEY_NAME: Final = "public_key.pem"
"""What stands beside the two files in an exported adapter."""

_CHUNK_BYTES: Final = 1 << 20


class ManifestProblem(ValueError):
    """An adapter and its manifest do not agree: which file, what was expected, what was found."""


@dataclass(frozen=True, slots=True)
class FileFact:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What an adapter's directory holds, from one reading."""

    sha256: str  # the content digest
    files: dict[str, FileFact]

    def to_json(self) -> dict[str, dict[str, Any]]:
        return {
            name: {"sha256": fact.sha256, "size_bytes": fact.size_bytes}
            for name, fact in self.files.items()
        }


def read_contents(directory: Path) -> Contents:
    """Reads both files; follows no link. Raises ManifestProblem for what cannot be read."""
    content = hashlib.sha256()
    files: dict[str, FileFact] = {}
    for name in ADAPTER_FILES:
        own = hashlib.sha256()
        try:
            descriptor = os.open(
                directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            )
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ManifestProblem(f"{directory / name}: not a regular file")
                content.update(name.encode() + b"\0" + status.st_size.to_bytes(8, "little"))
                for chunk in _chunks(file):
                    own.update(chunk)
                    content.update(chunk)
        except OSError as error:
            raise ManifestProblem(f"{directory / name}: {error.strerror or error}") from error
        files[name] = FileFact(own.hexdigest(), status.st_size)
    return Contents(content.hexdigest(), files)


def _chunks(file: Any) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def check_contents(statement: dict[str, Any], directory: Path) -> Contents:
    """Compares a directory's files with a manifest's statement; raises ManifestProblem."""
    promised = statement.get("adapter")
    files = promised.get("files") if isinstance(promised, dict) else None
    if not isinstance(promised, dict) or not isinstance(files, dict):
        raise ManifestProblem("the manifest names no adapter files")
    if sorted(files) != sorted(ADAPTER_FILES):
        raise ManifestProblem(
            f"the manifest speaks of {', '.join(sorted(map(str, files)))}, an adapter is "
            f"{' and '.join(ADAPTER_FILES)}"
        )
    found = read_contents(directory)
    for name, fact in found.files.items():
        wanted = files[name] if isinstance(files[name], dict) else {}
        if fact.sha256 != wanted.get("sha256"):
            raise ManifestProblem(
                f"{directory / name}: its SHA-256 is {fact.sha256} ({fact.size_bytes} bytes), the "
                f"manifest says {wanted.get('sha256')} ({wanted.get('size_bytes')} bytes): the "
                "file is not the one that was promoted"
            )
        if fact.size_bytes != wanted.get("size_bytes"):
            raise ManifestProblem(
                f"{directory / name}: has {fact.size_bytes} bytes, the manifest says "
                f"{wanted.get('size_bytes')}"
            )
    if found.sha256 != promised.get("sha256"):
        raise ManifestProblem(
            f"{directory}: its content digest is {found.sha256}, the manifest says "
            f"{promised.get('sha256')}"
        )
    return found
