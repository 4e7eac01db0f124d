"""A comparison's directory: ``compare.json`` says what is compared and which run is which."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from opsd.daemon.cli.compare.files import write_file
from opsd.daemon.cli.exits import CliError, Exit

LEDGER_NAME = "compare.json"
_VERSION = 1


@dataclass(slots=True)
class Entry:
    """One run of the comparison. Its request id is fixed before it is triggered, so that a
    comparison that was interrupted triggers nothing twice."""

    method: str
    seed: int | None
    source: str  # of the pairs; "": all
    request_id: str
    overrides: dict[str, Any]  # RunSpec, proto3 JSON
    overridden: list[str]
    run_id: str = ""


@dataclass(slots=True)
class Ledger:
    id: str
    created_unix_s: float
    reason: str
    target_accuracy: float
    runs: list[Entry] = field(default_factory=list)

    def label(self, entry: Entry) -> str:
        """As messages name a run."""
        return entry.method if entry.seed is None else f"{entry.method}, seed {entry.seed}"

    def data_of(self, entry: Entry) -> str:
        """The run whose data this one trains on: the first of its source; "" for that one."""
        first = next(other for other in self.runs if other.source == entry.source)
        return "" if first is entry else first.run_id


def new_ledger(*, reason: str, target_accuracy: float) -> Ledger:
    return Ledger(str(uuid.uuid4()), time.time(), reason, target_accuracy)


def add_run(
    ledger: Ledger,
    *,
    method: str,
    seed: int | None,
    source: str,
    overrides: dict[str, Any],
    overridden: Sequence[str],
) -> None:
    request_id = f"compare-{ledger.id}-{len(ledger.runs)}"
    ledger.runs.append(Entry(method, seed, source, request_id, overrides, list(overridden)))


def create(directory: Path, ledger: Ledger) -> None:
    """Makes the directory; raises CliError when it holds a comparison already."""
    if (directory / LEDGER_NAME).exists():
        raise CliError(
            f"{directory} holds a comparison already",
            hint=f"go on with it: opsd compare --resume {directory}; or name another --out",
            code=Exit.REFUSED,
        )
    directory.mkdir(parents=True, exist_ok=True)
    save(directory, ledger)


def save(directory: Path, ledger: Ledger) -> None:
    text = json.dumps({"version": _VERSION, **asdict(ledger)}, indent=2, ensure_ascii=False)
    write_file(directory / LEDGER_NAME, text + "\n")


def load(directory: Path) -> Ledger:
    """Raises CliError."""
    path = directory / LEDGER_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("version") != _VERSION:
            raise ValueError("another version of opsd wrote it")
        runs = [Entry(**entry) for entry in data.pop("runs")]
        return Ledger(**data, runs=runs)
    except FileNotFoundError as error:
        raise CliError(
            f"{path}: no such file",
            hint="name the directory that a comparison was begun in",
            code=Exit.NOT_FOUND,
        ) from error
    except OSError as error:
        raise CliError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CliError(f"{path}: not a comparison: {error}", code=Exit.INVALID_INPUT) from error
