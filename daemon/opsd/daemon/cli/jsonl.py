"""Reading pairs from JSON lines, in constant memory, with every fault named by file and line."""

from __future__ import annotations

import difflib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from opsd.daemon.cli.output import clean

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import PairInput

MAX_LINE_BYTES = 8 << 20
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://opsd/pairs")
"""Of the ids made from content."""

_REQUIRED = ("prompt", "solution", "verifier", "reference")
_KNOWN = ("id", *_REQUIRED, "source", "stratum")


class LineError(ValueError):
    """A line that is no pair."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: a pair, or what is wrong with it."""

    number: int  # from 1
    end_byte: int  # offset of its end
    pair: PairInput | None
    error: str = ""


def read_lines(file: IO[bytes], *, default_source: str = "") -> Iterator[Line]:
    """Every line that is not blank. A line over the limit is skipped, but for its error."""
    number = offset = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        offset += len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            while rest := file.readline(MAX_LINE_BYTES):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            yield Line(number, offset, None, f"longer than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            continue
        try:
            yield Line(number, offset, parse_pair(raw, default_source))
        except LineError as error:
            yield Line(number, offset, None, str(error))


def parse_pair(raw: bytes, default_source: str = "") -> PairInput:
    """A line as a pair; without an id it gets one made from its content.

    Raises LineError that names the field and the fix.
    """
    from opsd.v1.collection_pb2 import PairInput

    fields = _object(raw)
    for name in fields:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, 1, 0.6)
            fix = f"did you mean {close[0]}?" if close else f"known: {', '.join(_KNOWN)}"
            raise LineError(f"{clean(name)}: no such field; {fix}")
    for name, value in fields.items():
        if not isinstance(value, str):
            written = json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)
            raise LineError(f"{name}: must be a string, e.g. {written[:60]}")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise LineError(f"{name}: holds half a surrogate pair, which is not Unicode text")
    for name in _REQUIRED:
        if not fields.get(name, "").strip():
            state = "is empty" if name in fields else "is missing"
            raise LineError(f"{name}: {state}; a pair needs {', '.join(_REQUIRED)}")
    if default_source:
        fields.setdefault("source", default_source)
    fields["id"] = _id(fields)
    return PairInput(**fields)


def _object(raw: bytes) -> dict[str, Any]:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise LineError(
            f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"
        ) from error
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise LineError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise LineError("not a pair: nested too deeply") from error
    if not isinstance(value, dict):
        raise LineError('must be an object: {"prompt": …, "solution": …, …}')
    return value


def _unique(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        names = [name for name, _ in items]
        twice = next(name for name in names if names.count(name) > 1)
        raise LineError(f"{clean(twice)}: given twice")
    return found


def _id(fields: dict[str, Any]) -> str:
    given = fields.get("id", "")
    if not given:
        content = json.dumps([fields[name] for name in _REQUIRED], ensure_ascii=False)
        return str(uuid.uuid5(NAMESPACE, content))
    try:
        return str(uuid.UUID(given))
    except ValueError as error:
        raise LineError(
            f"id: {clean(given)[:60]!r} is no UUID; leave it out and it is made from the content"
        ) from error
