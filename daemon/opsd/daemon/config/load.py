"""Reading the configuration: the file, then the environment over it, then the schema's checks."""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from opsd.daemon.config.environment import read_environment
from opsd.daemon.config.keys import all_keys, dotted, find_key, sections
from opsd.daemon.config.lines import KeyPath, key_lines
from opsd.daemon.config.messages import schema_problem
from opsd.daemon.config.problems import Problem, raise_problems
from opsd.daemon.config.schema import OpsdConfig
from opsd.daemon.errors import ConfigError

SYSTEM_CONFIG = Path("/etc/opsd/opsd.toml")


class OriginKind(StrEnum):
    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from; ``where`` is ``file:line`` or the variable's name."""

    kind: OriginKind
    where: str = ""


_DEFAULT = Origin(OriginKind.DEFAULT)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration with absolute paths, and where each value came from."""

    config: OpsdConfig
    path: Path | None = None  # the file, when there is one
    origins: Mapping[str, Origin] = field(default_factory=lambda: MappingProxyType({}))

    def origin(self, key: str) -> Origin:
        """Of a dotted key such as ``server.port`` or ``gate.suites[0].path``."""
        found = self.origins.get(key)
        if found is None and "[" in key:
            # The environment sets a list as a whole.
            whole = self.origins.get(key.partition("[")[0])
            found = whole if whole is not None and whole.kind is OriginKind.ENVIRONMENT else None
        return found or _DEFAULT

    def where(self, key: str) -> str:
        """The same as a message names it; "" for a default."""
        origin = self.origin(key)
        prefix = "environment " if origin.kind is OriginKind.ENVIRONMENT else ""
        return prefix + origin.where


def find_config(explicit: Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: as named, $OPSD_CONFIG, ./opsd.toml, /etc/opsd/opsd.toml; None: no file.

    A file that was named must exist (load_config says so); the last two may be missing.
    """
    if explicit is not None:
        return explicit
    if environ.get("OPSD_CONFIG"):
        return Path(environ["OPSD_CONFIG"])
    local = Path("opsd.toml")
    return next((path for path in (local, SYSTEM_CONFIG) if path.is_file()), None)


def load_config(path: Path | None, environ: Mapping[str, str]) -> LoadedConfig:
    """Reads the file (None: none), puts the environment over it, and checks the whole.

    Relative paths are taken from the file's directory; without a file, from the working directory.

    Raises:
        ConfigError: it names every bad key with its place, what is allowed, and the fix.
    """
    loaded, problems = read_config(path, environ)
    raise_problems(problems)
    assert loaded is not None, "without a problem there is a configuration"
    return loaded


def read_config(
    path: Path | None, environ: Mapping[str, str]
) -> tuple[LoadedConfig | None, list[Problem]]:
    """As load_config, but with the problems as data; raises ConfigError for an unreadable file."""
    data: dict[str, Any] = {}
    origins: dict[str, Origin] = {}
    if path is not None:
        text = _read(path)
        data = _parse(path, text)
        for key_path, line in key_lines(text).items():
            origins[dotted(key_path)] = Origin(OriginKind.FILE, f"{path}:{line}")
    overrides, problems = read_environment(environ)
    for override in overrides:
        if not _put(data, override.key.path, override.value):
            continue  # the table itself is no table: the schema's check reports that
        name = override.key.name
        for below in [key for key in origins if key.startswith((f"{name}[", f"{name}."))]:
            del origins[below]
        origins[name] = Origin(OriginKind.ENVIRONMENT, override.variable)
    strange = list(_strange_values(data))
    problems += [Problem(dotted(p), _place(p, origins), message) for p, message in strange]
    if strange:
        return None, problems
    config, found = _validate(data, origins)
    problems += found
    if config is None or problems:
        return None, problems
    base = path.absolute().parent if path is not None else Path.cwd()
    config = _absolute(config, base)
    return LoadedConfig(config, path, MappingProxyType(origins)), []


def _read(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(
            f"{path}: no such file; make one with: opsd config init {path}"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        # tomllib refuses a byte order mark; editors on Windows write one.
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        lines = text.splitlines() or [""]
        at = _AT.search(str(error))
        number = int(at[1]) if at is not None and at[1] else len(lines)
        # A problem that shows at a line's end is reported for the start of the next one.
        line = lines[min(number, len(lines)) - 1].strip()
        what = _AT.sub("", str(error)).rstrip(".")
        raise ConfigError(
            f"{path}:{number}: not TOML: {what}, in: {line[:80]}; "
            'strings need quotes ("…"), booleans are true and false, tables are [section]'
        ) from error


def _put(data: dict[str, Any], path: tuple[str, ...], value: Any) -> bool:
    table = data
    for part in path[:-1]:
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            return False
        table = below
    table[path[-1]] = value
    return True


def _strange_values(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Values that TOML can say and no key wants."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _strange_values(below, (*path, key))
    elif isinstance(value, list):
        for index, below in enumerate(value):
            yield from _strange_values(below, (*path, index))
    elif isinstance(value, date | time):
        yield path, f"{value} is a date or time; put it in quotes if a string is meant"
    elif isinstance(value, float) and not math.isfinite(value):
        key = find_key(path)
        allowed = f", must be {key.allowed}" if key is not None else ""
        yield path, f"{value} is not finite{allowed}"


def _validate(
    data: dict[str, Any], origins: Mapping[str, Origin]
) -> tuple[OpsdConfig | None, list[Problem]]:
    problems: list[Problem] = []
    try:
        # JSON's strict mode takes lists for tuples and strings for paths, but never "5" for 5.
        return OpsdConfig.model_validate_json(json.dumps(data), strict=True), problems
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = tuple(item["loc"])
            problem = schema_problem(path, item)
            if problem.key != dotted(path):
                path = tuple(problem.key.split("."))
            named = [] if path else _keys_named_in(problem.message, origins)
            where = named[0] if named else _place(path, origins)
            problems.append(Problem(problem.key, where, problem.message, problem.fix))
    problems.sort(key=lambda problem: _sort_key(problem.where))
    return None, problems


def _sort_key(where: str) -> tuple[str, int]:
    file, _, line = where.rpartition(":")
    return (file, int(line)) if line.isdigit() else (where, 0)


def _keys_named_in(message: str, origins: Mapping[str, Origin]) -> list[str]:
    """The places of the keys that a check across keys speaks of."""
    words = re.findall(r"[a-z_]+(?:\.[a-z_0-9]+)*", message)
    known = [word for word in words if word in all_keys() or word in sections()]
    return [_label(origins[word]) for word in known if word in origins]


def _label(origin: Origin) -> str:
    return origin.where if origin.kind is OriginKind.FILE else f"environment {origin.where}"


def _place(path: KeyPath, origins: Mapping[str, Origin]) -> str:
    """Where a key stands, or the nearest table around it."""
    for length in range(len(path), 0, -1):
        origin = origins.get(dotted(path[:length]))
        if origin is not None:
            return _label(origin)
    return ""


_SQLITE = re.compile(r"^(sqlite(?:\+\w+)?:///)(?!/)([^?]+)(.*)$", re.DOTALL)


def _absolute(config: OpsdConfig, base: Path) -> OpsdConfig:
    def anchored(text: str | Path) -> Path:
        # Not Path.expanduser, which raises for a user that is not there: that path is just missing.
        return base / os.path.expanduser(text)

    model = config.model
    if model.path:
        model = model.model_copy(update={"path": str(anchored(model.path))})
    suites = tuple(
        suite.model_copy(update={"path": str(anchored(suite.path))}) for suite in config.gate.suites
    )
    store = config.store
    sqlite = _SQLITE.match(store.url)
    if sqlite is not None and not sqlite[2].startswith((":memory:", "file:")):
        url = f"{sqlite[1]}{anchored(sqlite[2])}{sqlite[3]}"
        store = store.model_copy(update={"url": url})
    signing = config.signing
    if signing.key_file:
        signing = signing.model_copy(update={"key_file": str(anchored(signing.key_file))})
    return config.model_copy(
        update={
            "state_dir": anchored(config.state_dir),
            "model": model,
            "gate": config.gate.model_copy(update={"suites": suites}),
            "store": store,
            "signing": signing,
        }
    )
