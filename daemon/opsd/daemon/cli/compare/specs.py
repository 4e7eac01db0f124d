"""What is compared: files of training keys, one for each method."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsd.daemon.cli.compare.files import Document, read_document
from opsd.daemon.cli.exits import CliError, Exit
from opsd.daemon.cli.overrides import read_table

if TYPE_CHECKING:
    from opsd.v1.training_pb2 import RunSpec

_KEYS = ("name", "seeds", "source", "training")
_MAX_NAME_CHARS = 60
_MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the comparison."""

    name: str
    seeds: tuple[int | None, ...]  # None: the configured one
    source: str  # of the pairs; "": all
    overrides: RunSpec
    overridden: tuple[str, ...]  # dotted names of what ``overrides`` sets
    document: Document


def read_methods(paths: Sequence[Path], seeds: Sequence[int], source: str = "") -> list[Method]:
    """Every file, checked; ``seeds`` take the place of the files' own, ``source`` is for files
    without one.

    Raises CliError that holds everything that is wrong, each with file, line and key.
    """
    methods: list[Method] = []
    wrong: list[str] = []
    for path in paths:
        document = read_document(path)
        found = list(_complaints(document, seeds))
        overrides, overridden, bad_keys = read_table(_table(document))
        found += [f"{document.place(f'training.{key}')}: {what}" for key, what in bad_keys]
        wrong += found
        if not found:
            own = tuple(seeds) or tuple(document.data.get("seeds", ())) or (None,)
            name = document.data.get("name", path.stem)
            pairs = document.data.get("source", source)
            methods.append(Method(name, own, pairs, overrides, tuple(overridden), document))
    places: dict[str, Path] = {}
    for method in methods:
        path = method.document.path
        first = places.setdefault(method.name, path)
        if first is not path:
            wrong.append(f"{path}: name {method.name!r} is that of {first} too: give it its own")
    raise_all(wrong)
    return methods


def parse_seeds(text: str) -> list[int]:
    """``1,2,3``; raises CliError."""
    try:
        seeds = [int(word) for word in text.split(",")] if text else []
    except ValueError as error:
        raise CliError(
            f"--seeds {text}: not whole numbers", hint="write --seeds 1,2,3", code=Exit.USAGE
        ) from error
    what = _bad_seeds(seeds) if text else ""
    if what:
        raise CliError(f"--seeds {text}: {what}", code=Exit.USAGE)
    return seeds


def raise_all(wrong: Sequence[str]) -> None:
    """Raises one CliError of all that is wrong, if anything is."""
    if len(wrong) == 1:
        raise CliError(wrong[0], code=Exit.INVALID_INPUT)
    if wrong:
        lines = "\n".join(f"  {line}" for line in wrong)
        raise CliError(f"{len(wrong)} things to mend:\n{lines}", code=Exit.INVALID_INPUT)


def _complaints(document: Document, seeds: Sequence[int]) -> Iterator[str]:
    data = document.data
    for key in data.keys() - set(_KEYS):
        close = difflib.get_close_matches(key, _KEYS, 1, 0.6)
        guess = f"did you mean {close[0]}?" if close else f"known: {', '.join(_KEYS)};"
        yield f"{document.place(key)}: no such key; {guess} training keys stand under training"
    name = data.get("name", document.path.stem)
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        yield f"{document.place('name')}: {name!r} is not a printable text"
    elif len(name) > _MAX_NAME_CHARS:
        yield f"{document.place('name')}: has {len(name)} characters, at most {_MAX_NAME_CHARS}"
    if not isinstance(data.get("source", ""), str):
        yield f"{document.place('source')}: is not a text"
    if not isinstance(data.get("training", {}), dict):
        yield f"{document.place('training')}: is not a table; write [training]"
    if "seeds" in data and (what := _bad_seeds(data["seeds"])):
        yield f"{document.place('seeds')}: {what}"
    if "seed" in _table(document) and (seeds or "seeds" in data):
        where = "--seeds" if seeds else "seeds"
        yield f"{document.place('training.seed')}: {where} gives the seed already; keep one of them"


def _bad_seeds(seeds: Any) -> str:
    if not isinstance(seeds, list) or not seeds:
        return "is not a list of seeds, e.g. [1, 2, 3]"
    for seed in seeds:
        if type(seed) is not int or not 0 <= seed <= _MAX_SEED:
            return f"{seed!r} is not a whole number from 0 to 2^63 - 1"
    return "names a seed twice" if len(set(seeds)) < len(seeds) else ""


def _table(document: Document) -> dict[str, Any]:
    table = document.data.get("training", {})
    return table if isinstance(table, dict) else {}
