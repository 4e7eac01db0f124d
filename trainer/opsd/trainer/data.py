"""The immutable training shard and the order in which its pairs are drawn."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from opsd.trainer.errors import ShardError
from opsd.v1 import training_pb2

_TEXT_FIELDS = ("id", "prompt", "solution")


@dataclass(frozen=True, slots=True)
class Pair:
    """A problem with its verified solution, what its verifier needs, and what earlier runs saw."""

    id: str
    prompt: str
    solution: str
    reference: str = ""
    verifier: str = ""
    attempts: int = 0
    solved: int = 0


def load_shard(ref: training_pb2.ShardRef) -> list[Pair]:
    """Reads the shard after checking its digest and count; raises `ShardError` naming the line."""
    path = Path(ref.path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"shard {path}: cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(data).hexdigest()
    if digest != ref.sha256.lower():
        raise ShardError(
            f"shard {path}: SHA-256 is {digest}, the spec says {ref.sha256}: the file was altered "
            "after the run was prepared; trigger a new run"
        )
    pairs = [_pair(path, number, line) for number, line in enumerate(data.splitlines(), 1)]
    if len(pairs) != ref.num_pairs:
        raise ShardError(f"shard {path}: {len(pairs)} pairs, the spec says {ref.num_pairs}")
    _expect_distinct(path, "id", [pair.id for pair in pairs])
    _expect_distinct(path, "prompt", [pair.prompt for pair in pairs])
    return pairs


def _pair(path: Path, number: int, line: bytes) -> Pair:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ShardError(f"shard {path}, line {number}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ShardError(f"shard {path}, line {number}: not a JSON object")
    for name in _TEXT_FIELDS:
        if not isinstance(row.get(name), str) or not row[name]:
            raise ShardError(f"shard {path}, line {number}: {name} must be a non-empty string")
    for name in ("reference", "verifier"):
        if not isinstance(row.get(name, ""), str):
            raise ShardError(f"shard {path}, line {number}: {name} must be a string")
    attempts, solved = row.get("attempts", 0), row.get("solved", 0)
    if not (isinstance(attempts, int) and isinstance(solved, int) and 0 <= solved <= attempts):
        raise ShardError(
            f"shard {path}, line {number}: solved and attempts must be counts, solved at most "
            f"attempts, not {solved!r} and {attempts!r}"
        )
    return Pair(
        id=row["id"],
        prompt=row["prompt"],
        solution=row["solution"],
        reference=row.get("reference", ""),
        verifier=row.get("verifier", ""),
        attempts=attempts,
        solved=solved,
    )


def _expect_distinct(path: Path, name: str, values: list[str]) -> None:
    first: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if value in first:
            shown = value if len(value) <= 60 else value[:60] + "…"
            raise ShardError(
                f"shard {path}, line {number}: {name} {shown!r} occurs twice, first in line "
                f"{first[value]}; keep one of them"
            )
        first[value] = number


class DrawOrder:
    """An endless order over the pairs, each epoch shuffled anew.

    The order within an epoch is by SHA-256 of (seed, epoch, id): the same for any number of ranks,
    any order of the shard's lines and any release of any library.
    """

    def __init__(self, pairs: list[Pair], seed: int) -> None:
        self._pairs = pairs
        self._seed = seed

    def from_position(self, position: int) -> Iterator[Pair]:
        """The draws from the given one on; position counts draws since the start of the run."""
        epoch, offset = divmod(position, len(self._pairs))
        while True:
            yield from self._epoch(epoch)[offset:]
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[Pair]:
        def key(pair: Pair) -> bytes:
            return hashlib.sha256(f"{self._seed}:{epoch}:{pair.id}".encode()).digest()

        return sorted(self._pairs, key=key)
