"""TOML and JSON files with the line of every key."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder, scanstring  # type: ignore[attr-defined]  # not in typeshed
from pathlib import Path
from typing import Any

from opsd.daemon.cli.exits import CliError, Exit

_SPACE = re.compile(r"[ \t\n\r]*")
_LINE = re.compile(r"\(at line (\d+), column \d+\)$")


@dataclass(frozen=True, slots=True)
class Document:
    """A table as a file has it; ``lines`` are counted from 1, by dotted key."""

    path: Path
    data: dict[str, Any]
    lines: Mapping[str, int]

    def place(self, key: str) -> str:
        """``file:line: key``, of the nearest table where the key itself has no line."""
        parts = key.split(".")
        for length in range(len(parts), 0, -1):
            line = self.lines.get(".".join(parts[:length]))
            if line is not None:
                return f"{self.path}:{line}: {key}"
        return f"{self.path}: {key}"


def read_document(path: Path) -> Document:
    """By the file's suffix: ``.json``, else TOML. Raises CliError with the line."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CliError(f"{path}: no such file", code=Exit.NOT_FOUND) from error
    except OSError as error:
        raise CliError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _malformed(f"{path}: not UTF-8: {error.reason}") from error
    if path.suffix.lower() == ".json":
        return Document(path, *_json(path, text))
    return Document(path, *_toml(path, text))


def write_file(path: Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _toml(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    from opsd.daemon.config.lines import key_lines

    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        at = _LINE.search(str(error))
        line = int(at[1]) if at else text.count("\n") + 1
        raise _malformed(f"{path}:{line}: not TOML: {error}") from error
    lines: dict[str, int] = {}
    for key, line in key_lines(text).items():
        lines.setdefault(".".join(part for part in key if isinstance(part, str)), line)
    return data, lines


def _json(path: Path, text: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise _malformed(f"{path}:{error.lineno}: not JSON: {error.msg}") from error
    except RecursionError as error:
        raise _malformed(f"{path}: not JSON that can be read: nested too deeply") from error
    if not isinstance(data, dict):
        raise _malformed(f"{path}: an object with the key training is expected")
    scanner = _JsonKeys(path, text)
    scanner.table(_skip(text, 0), "")
    return data, scanner.lines


class _JsonKeys:
    """Walks a text that the parser has accepted."""

    def __init__(self, path: Path, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._path = path
        self._text = text

    def table(self, position: int, prefix: str) -> int:
        """The position after the object that begins at ``position``."""
        position = _skip(self._text, position + 1)
        while self._text[position] != "}":
            line = self._text.count("\n", 0, position) + 1
            key, position = scanstring(self._text, position + 1)
            name = f"{prefix}{key}"
            if name in self.lines:
                raise _malformed(f"{self._path}:{line}: {name}: stands there twice")
            self.lines[name] = line
            position = _skip(self._text, _skip(self._text, position) + 1)  # past the colon
            if self._text[position] == "{":
                position = self.table(position, f"{name}.")
            else:
                _, position = JSONDecoder().raw_decode(self._text, position)
            position = _skip(self._text, position)
            if self._text[position] == ",":
                position = _skip(self._text, position + 1)
        return position + 1


def _skip(text: str, position: int) -> int:
    """Past white space."""
    found = _SPACE.match(text, position)
    assert found is not None, "it matches nothing at all too"
    return found.end()


def _malformed(message: str) -> CliError:
    return CliError(message, code=Exit.INVALID_INPUT)
