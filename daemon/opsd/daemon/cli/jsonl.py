"""Reading pairs from JSON lines, in constant memory, with every fault named by file and line."""

from __future__ import annotations

import difflib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from opsd.daemon.cli.output import clean
from opsd.daemon.types.ids import pair_id, problem_id

if TYPE_CHECKING:
    from opsd.v1.collection_pb2 import (
        PairInput,
        ProblemInput,
        SubmitPairsRequest,
        SubmitProblemsRequest,
    )

MAX_LINE_BYTES = 8 << 20

Item = TypeVar("Item")

_PAIR = ("prompt", "solution", "verifier", "reference")
_PROBLEM = ("prompt", "verifier")
_LABELS = ("source", "stratum")


class LineError(ValueError):
    """A line that does not hold what it should."""


@dataclass(frozen=True, slots=True)
class Line(Generic[Item]):
    """One line that is not blank: a request to send, or what is wrong with it."""

    number: int  # from 1
    end_byte: int  # offset of its end
    item: Item | None  # None: ``error`` says why
    error: str = ""
    raw: bytes = b""  # as it stands in the file; none of a line over the limit


def read_lines(
    file: IO[bytes], parse: Callable[[bytes], Item], *, number: int = 0, offset: int = 0
) -> Iterator[Line[Item]]:
    """Every line that is not blank. A line over the limit is skipped, but for its error.

    ``number`` and ``offset`` are those of what was read before, where the file is there already.
    """
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
            item = parse(raw)
        except LineError as error:
            yield Line(number, offset, None, str(error), raw)
        else:
            yield Line(number, offset, item, raw=raw)


def parse_pair(raw: bytes, default_source: str = "") -> PairInput:
    """A line as a pair; without an id it gets one made from its content.

    Raises LineError that names the field and the fix.
    """
    from opsd.v1.collection_pb2 import PairInput

    fields = _texts(parse_object(raw), ("id", *_PAIR, *_LABELS))
    _require(fields, "a pair", _PAIR)
    if default_source:
        fields.setdefault("source", default_source)
    fields["id"] = canonical_id(fields.get("id", "")) or pair_id(*(fields[key] for key in _PAIR))
    return PairInput(**fields)


def pair_request(raw: bytes, default_source: str = "") -> SubmitPairsRequest:
    """Raises LineError."""
    from opsd.v1.collection_pb2 import SubmitPairsRequest

    return SubmitPairsRequest(pair=parse_pair(raw, default_source))


def problem_request(raw: bytes, default_source: str = "") -> SubmitProblemsRequest:
    """Raises LineError."""
    from opsd.v1.collection_pb2 import SubmitProblemsRequest

    return SubmitProblemsRequest(problem=parse_problem(raw, default_source))


def parse_problem(raw: bytes, default_source: str = "") -> ProblemInput:
    """A line as a problem, whose reference may be missing; otherwise as ``parse_pair``."""
    from opsd.v1.collection_pb2 import ProblemInput

    found = parse_object(raw)
    priority = found.pop("priority", 0)
    if not isinstance(priority, int) or isinstance(priority, bool) or abs(priority) >= 1 << 31:
        raise LineError("priority: must be an integer, e.g. 0")
    fields = _texts(found, ("id", *_PROBLEM, "reference", *_LABELS, "priority"))
    _require(fields, "a problem", _PROBLEM)
    if default_source:
        fields.setdefault("source", default_source)
    fields["id"] = canonical_id(fields.get("id", "")) or problem_id(
        fields["prompt"], fields["verifier"], fields.get("reference", "")
    )
    return ProblemInput(**fields, priority=priority)


def _texts(fields: dict[str, Any], known: tuple[str, ...]) -> dict[str, str]:
    """Raises LineError for a name that is not known and a value that is no text."""
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.6)
            fix = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
            raise LineError(f"{clean(name)}: no such field; {fix}")
    for name, value in fields.items():
        if not isinstance(value, str):
            written = json.dumps(json.dumps(value, ensure_ascii=False), ensure_ascii=False)
            raise LineError(f"{name}: must be a string, e.g. {written[:60]}")
        check_text(name, value)
    return fields


def check_text(name: str, value: str) -> None:
    """Raises LineError for what no message can carry."""
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise LineError(f"{name}: holds half a surrogate pair, which is not Unicode text")


def _require(fields: dict[str, str], thing: str, names: tuple[str, ...]) -> None:
    for name in names:
        if not fields.get(name, "").strip():
            state = "is empty" if name in fields else "is missing"
            raise LineError(f"{name}: {state}; {thing} needs {', '.join(names)}")


def parse_object(raw: bytes) -> dict[str, Any]:
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
        raise LineError("nested too deeply") from error
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


def canonical_id(given: str) -> str:
    """Empty stays empty. Raises LineError."""
    if not given:
        return ""
    try:
        return str(uuid.UUID(given))
    except ValueError as error:
        raise LineError(
            f"id: {clean(given)[:60]!r} is no UUID; leave it out and it is made from the content"
        ) from error
