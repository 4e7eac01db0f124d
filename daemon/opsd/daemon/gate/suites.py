"""Held-out suites: read once, checked line by line, compared with what was trained on.

A suite is a file of JSON lines, each an object with the texts ``id``, ``prompt``, ``verifier`` and
``reference`` and, if wanted, ``stratum``; other keys are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from opsd.daemon.config.schema import SuiteConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.types.gate import SuiteRole
from opsd.daemon.types.pairs import SuiteItem
from opsd.daemon.types.text import normalise_prompt, prompt_key

_REQUIRED = ("id", "prompt", "verifier", "reference")
_MAX_LINE_BYTES = 1 << 20
_MAX_ID_CHARS = 256
_NAMED_AT_MOST = 5


class TrainedKeys(Protocol):
    """The part of the pair store that knows what was trained on."""

    def trained_prompt_keys(self, keys: Sequence[str]) -> set[str]: ...


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite as it stood when it was read; ``sha256`` is of the file's bytes."""

    name: str
    role: SuiteRole
    margin: float
    path: Path
    sha256: str
    items: tuple[SuiteItem, ...]


@dataclass(frozen=True, slots=True)
class HeldOutItem:
    """Where a held-out prompt stands."""

    suite: str
    item_id: str
    line: int


@dataclass(frozen=True, slots=True)
class SuiteSet:
    """All suites, and every held-out prompt's key (``types.text.prompt_key``) with its place."""

    suites: tuple[Suite, ...]
    held_out: dict[str, HeldOutItem]

    def num_items(self) -> int:
        return sum(len(suite.items) for suite in self.suites)

    def held_out_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of ``keys`` (``types.text.prompt_key``) that belong to an item of a suite."""
        return {key for key in keys if key in self.held_out}


def load_suites(configs: Sequence[SuiteConfig], *, verifiers: Collection[str]) -> SuiteSet:
    """Reads and checks every suite; ``verifiers`` are the names that items may ask for.

    Raises ConfigError, which names the file, the line and the fix, for an unreadable or empty file,
    a malformed line, an unknown verifier, an id that occurs twice in a suite, and a problem that
    occurs twice in whichever suites.
    """
    held_out: dict[str, HeldOutItem] = {}
    paths = {config.name: Path(config.path) for config in configs}
    suites = []
    for config in configs:
        path = paths[config.name]
        data = _read(config.name, path)
        items = _parse(config.name, path, data, verifiers=verifiers)
        if not items:
            raise ConfigError(f"{path}: suite {config.name!r} is empty: add at least one item")
        _claim_prompts(config.name, items, held_out, paths)
        suites.append(
            Suite(
                name=config.name,
                role=SuiteRole(config.role),
                margin=config.margin,
                path=path,
                sha256=hashlib.sha256(data).hexdigest(),
                items=tuple(item for _, item in items),
            )
        )
    return SuiteSet(suites=tuple(suites), held_out=held_out)


def check_untrained(suites: SuiteSet, store: TrainedKeys) -> None:
    """Raises ConfigError when an item of a suite stands in a run's snapshot: it measures memory."""
    trained = store.trained_prompt_keys(sorted(suites.held_out))
    if not trained:
        return
    paths = {suite.name: suite.path for suite in suites.suites}
    places = sorted(
        (item.suite, item.line, item.item_id)
        for key, item in suites.held_out.items()
        if key in trained
    )
    named = [f"{paths[suite]}:{line} (item {item_id!r})" for suite, line, item_id in places]
    shown = ", ".join(named[:_NAMED_AT_MOST])
    more = f" and {len(named) - _NAMED_AT_MOST} more" if len(named) > _NAMED_AT_MOST else ""
    raise ConfigError(
        f"gate.suites: held-out problems were trained on by an earlier run: {shown}{more}. "
        "No trained item enters a suite: remove these lines"
    )


def check_unchanged(suites: SuiteSet) -> None:
    """Raises ConfigError when a suite's file is no longer what was read."""
    for suite in suites.suites:
        if hashlib.sha256(_read(suite.name, suite.path)).hexdigest() != suite.sha256:
            raise ConfigError(
                f"{suite.path}: suite {suite.name!r} changed since the daemon read it: restart the "
                "daemon to take up the new items, or put the old file back"
            )


def _read(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: suite {name!r} cannot be read: {error.strerror}: mend gate.suites.path"
        ) from None


def _parse(
    name: str, path: Path, data: bytes, *, verifiers: Collection[str]
) -> list[tuple[int, SuiteItem]]:
    """Items with their line numbers; blank lines are passed over."""
    items = []
    lines_of_ids: dict[str, int] = {}
    # Only \n separates lines: Unicode's other separators are allowed inside a JSON text.
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        item = _parse_line(f"{path}:{number}", raw, verifiers=verifiers)
        first = lines_of_ids.setdefault(item.id, number)
        if first != number:
            raise ConfigError(
                f"{path}:{number}: id {item.id!r} occurs in line {first} already: ids of suite "
                f"{name!r} must differ"
            )
        items.append((number, item))
    return items


def _parse_line(place: str, raw: bytes, *, verifiers: Collection[str]) -> SuiteItem:
    record = _parse_object(place, raw)
    texts = {key: _text(place, record, key) for key in _REQUIRED}
    if len(texts["id"]) > _MAX_ID_CHARS:
        raise ConfigError(
            f"{place}: 'id' has {len(texts['id'])} characters: at most {_MAX_ID_CHARS} are kept"
        )
    if texts["verifier"] not in verifiers:
        raise ConfigError(
            f"{place}: unknown verifier {texts['verifier']!r}: use one of "
            f"{', '.join(sorted(verifiers))}"
        )
    if not normalise_prompt(texts["prompt"]):
        raise ConfigError(
            f"{place}: 'prompt' has no word, digit or operator: write the problem there"
        )
    stratum = _text(place, record, "stratum") if "stratum" in record else ""
    return SuiteItem(stratum=stratum, **texts)


def _parse_object(place: str, raw: bytes) -> dict[str, object]:
    if len(raw) > _MAX_LINE_BYTES:
        raise ConfigError(f"{place}: line of {len(raw)} bytes: at most {_MAX_LINE_BYTES} are read")
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place}: byte {error.start + 1} is not UTF-8: save the file as UTF-8"
        ) from None
    if line.startswith("\N{ZERO WIDTH NO-BREAK SPACE}"):
        raise ConfigError(f"{place}: begins with a byte order mark: save the file without one")
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{place}: not JSON ({error}): every line is one object with {', '.join(_REQUIRED)}"
        ) from None
    if not isinstance(record, dict):
        raise ConfigError(
            f"{place}: a {type(record).__name__}, not an object: every line is one object with "
            f"{', '.join(_REQUIRED)}"
        )
    return record


def _text(place: str, record: dict[str, object], key: str) -> str:
    if key not in record:
        raise ConfigError(f"{place}: key {key!r} is missing: every item has {', '.join(_REQUIRED)}")
    value = record[key]
    if not isinstance(value, str):
        raise ConfigError(
            f"{place}: {key!r} is a {type(value).__name__}, not a text: write it in quotes"
        )
    if key in _REQUIRED and not value.strip():
        raise ConfigError(f"{place}: {key!r} is empty: write it or remove the line")
    # An escaped lone surrogate is legal JSON and no text; PostgreSQL stores no NUL.
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise ConfigError(f"{place}: {key!r} holds a NUL or half a surrogate pair: remove it")
    return value


def _claim_prompts(
    name: str,
    items: Sequence[tuple[int, SuiteItem]],
    held_out: dict[str, HeldOutItem],
    paths: dict[str, Path],
) -> None:
    for number, item in items:
        key = prompt_key(item.prompt)
        first = held_out.setdefault(key, HeldOutItem(name, item.id, number))
        if (first.suite, first.line) != (name, number):
            raise ConfigError(
                f"{paths[name]}:{number}: the problem of item {item.id!r} is that of item "
                f"{first.item_id!r} ({paths[first.suite]}:{first.line}): keep one of them, or "
                "neither suite measures what it says"
            )
