"""The form of a suite: lines of JSON, checked one by one, with a digest of what they say.

Each line is an object with the texts ``id``, ``prompt``, ``verifier`` and ``reference`` and, if
wanted, ``stratum``, ``cluster`` and ``solution``; other keys are left alone. The first line may be
``{"suite": {"name", "version", "description"}}`` instead, each of the three optional.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from opsd.daemon.errors import InvalidInputError
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.text import normalise_prompt

VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_REQUIRED = ("id", "prompt", "verifier", "reference")
_OPTIONAL = ("stratum", "cluster", "solution")
_HEADER = ("name", "version", "description")
_MAX_LINE_BYTES = 1 << 20
_MAX_ID_CHARS = 256
_MAX_DESCRIPTION_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself; empty where it says nothing."""

    name: str = ""
    version: str = ""
    description: str = ""


NO_HEADER = Header()


@dataclass(frozen=True, slots=True)
class SuiteContent:
    """A suite's text as it was read; ``lines`` are those of the items."""

    header: Header
    items: tuple[SuiteItem, ...]
    lines: tuple[int, ...]
    sha256: str


def read_content(place: str, name: str, data: bytes, verifiers: Collection[str]) -> SuiteContent:
    """Checks a suite's text line by line; ``place`` is what messages call it.

    Raises InvalidInputError, which names line and fix, for a malformed line, an unknown verifier,
    an id that occurs twice, and a text without items.
    """
    header, items, lines = NO_HEADER, [], []
    lines_of_ids: dict[str, int] = {}
    may_be_header = True
    # Only \n separates lines: Unicode's other separators are allowed inside a JSON text.
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        here = f"{place}:{number}"
        record = _parse_object(here, raw)
        if may_be_header and "suite" in record and "prompt" not in record:
            header = _header(here, record["suite"])
            may_be_header = False
            continue
        may_be_header = False
        item = _item(here, record, verifiers)
        first = lines_of_ids.setdefault(item.id, number)
        if first != number:
            raise InvalidInputError(
                f"{here}: id {item.id!r} occurs in line {first} already: ids of suite "
                f"{name!r} must differ"
            )
        items.append(item)
        lines.append(number)
    if not items:
        raise InvalidInputError(f"{place}: suite {name!r} is empty: add at least one item")
    return SuiteContent(header, tuple(items), tuple(lines), content_sha256(items))


def canonical_items(items: Iterable[SuiteItem]) -> bytes:
    """The items as the digest sees them: in the order of their ids, one compact line each."""
    ordered = sorted(items, key=lambda item: item.id)
    return b"".join(_line(_record(item)) for item in ordered)


def content_sha256(items: Iterable[SuiteItem]) -> str:
    """SHA-256 of ``canonical_items``: no white space, order of lines or key left alone counts."""
    return hashlib.sha256(canonical_items(items)).hexdigest()


def file_text(header: Header, items: Sequence[SuiteItem]) -> bytes:
    """The text under which a suite is kept."""
    shown = {key: getattr(header, key) for key in _HEADER if getattr(header, key)}
    return _line({"suite": shown}) + b"".join(_line(_record(item)) for item in items)


def _record(item: SuiteItem) -> dict[str, str]:
    optional = {key: getattr(item, key) for key in _OPTIONAL if getattr(item, key)}
    return {key: getattr(item, key) for key in _REQUIRED} | optional


def _line(record: object) -> bytes:
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def _header(place: str, value: object) -> Header:
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{place}: 'suite' is a {type(value).__name__}, not an object: write "
            '{"suite": {"name": …, "version": …, "description": …}}'
        )
    header = Header(**{key: _text(place, value, key, needed=False) for key in _HEADER})
    if header.version and not VERSION.fullmatch(header.version):
        raise InvalidInputError(
            f"{place}: version {header.version[:80]!r} is not allowed: up to 64 letters, digits, "
            "points, hyphens and underscores, a letter or digit first"
        )
    if len(header.description) > _MAX_DESCRIPTION_CHARS:
        raise InvalidInputError(
            f"{place}: 'description' has {len(header.description)} characters: at most "
            f"{_MAX_DESCRIPTION_CHARS} are kept"
        )
    return header


def _item(place: str, record: dict[str, object], verifiers: Collection[str]) -> SuiteItem:
    texts = {key: _text(place, record, key, needed=True) for key in _REQUIRED}
    if len(texts["id"]) > _MAX_ID_CHARS:
        raise InvalidInputError(
            f"{place}: 'id' has {len(texts['id'])} characters: at most {_MAX_ID_CHARS} are kept"
        )
    if texts["verifier"] not in verifiers:
        raise InvalidInputError(
            f"{place}: unknown verifier {texts['verifier']!r}: use one of "
            f"{', '.join(sorted(verifiers))}"
        )
    if not normalise_prompt(texts["prompt"]):
        raise InvalidInputError(
            f"{place}: 'prompt' has no word, digit or operator: write the problem there"
        )
    return SuiteItem(**texts, **{key: _text(place, record, key, needed=False) for key in _OPTIONAL})


def _parse_object(place: str, raw: bytes) -> dict[str, object]:
    if len(raw) > _MAX_LINE_BYTES:
        raise InvalidInputError(
            f"{place}: line of {len(raw)} bytes: at most {_MAX_LINE_BYTES} are read"
        )
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInputError(
            f"{place}: byte {error.start + 1} is not UTF-8: save the file as UTF-8"
        ) from None
    if line.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise InvalidInputError(
            f"{place}: begins with a byte order mark: save the file without one"
        )
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{place}: not JSON ({error}): every line is one object with {', '.join(_REQUIRED)}"
        ) from None
    if not isinstance(record, dict):
        raise InvalidInputError(
            f"{place}: a {type(record).__name__}, not an object: every line is one object with "
            f"{', '.join(_REQUIRED)}"
        )
    return record


def _text(place: str, record: dict[str, object], key: str, *, needed: bool) -> str:
    if key not in record:
        if not needed:
            return ""
        raise InvalidInputError(
            f"{place}: key {key!r} is missing: every item has {', '.join(_REQUIRED)}"
        )
    value = record[key]
    if not isinstance(value, str):
        raise InvalidInputError(
            f"{place}: {key!r} is a {type(value).__name__}, not a text: write it in quotes"
        )
    if needed and not value.strip():
        raise InvalidInputError(f"{place}: {key!r} is empty: write it or remove the line")
    # An escaped lone surrogate is legal JSON and no text; PostgreSQL stores no NUL.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise InvalidInputError(f"{place}: {key!r} holds a NUL or half a surrogate pair: remove it")
    return value
