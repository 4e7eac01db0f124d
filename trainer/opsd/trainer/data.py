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
    """A problem with its verified solution. What else a line holds is for audits, not training."""

    id: str
    prompt: str
    solution: str


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
    seen: set[str] = set()
    for number, pair in enumerate(pairs, 1):
        if pair.id in seen:
            raise ShardError(f"shard {path}, line {number}: id {pair.id!r} occurs twice")
        seen.add(pair.id)
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
    return Pair(*(row[name] for name in _TEXT_FIELDS))


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
