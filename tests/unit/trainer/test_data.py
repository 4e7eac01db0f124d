"""The shard is checked, and drawn from in an order that depends on seed and ids alone."""

import hashlib
import itertools
import json
from pathlib import Path

import pytest

from opsd.trainer.data import DrawOrder, Pair, load_shard
from opsd.trainer.errors import ShardError
from opsd.v1 import training_pb2

PAIRS = [Pair(str(number), f"p{number}", "s") for number in range(7)]


def shard(path: Path, lines: list[str], num_pairs: int | None = None) -> training_pb2.ShardRef:
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(data)
    return training_pb2.ShardRef(
        path=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        num_pairs=len(lines) if num_pairs is None else num_pairs,
    )


def line(**changes: object) -> str:
    return json.dumps({"id": "1", "prompt": "1+1", "solution": "2", "stratum": "easy"} | changes)


def test_a_whole_shard_is_read(tmp_path: Path) -> None:
    ref = shard(tmp_path / "shard.jsonl", [line(), line(id="2", prompt="a\u2028b")])
    assert load_shard(ref) == [Pair("1", "1+1", "2"), Pair("2", "a\u2028b", "2")]


def test_one_changed_byte_is_noticed(tmp_path: Path) -> None:
    ref = shard(tmp_path / "shard.jsonl", [line()])
    path = Path(ref.path)
    path.write_bytes(path.read_bytes().replace(b"1+1", b"1+2"))
    with pytest.raises(ShardError, match="altered"):
        load_shard(ref)


@pytest.mark.parametrize(
    ("lines", "num_pairs", "message"),
    [
        ([line()], 2, "1 pairs, the spec says 2"),
        ([line(), line()], 2, "line 2: id '1' occurs twice"),
        ([line(), line(id="2")], 2, r"line 2: prompt .1\+1. occurs twice, first in line 1"),
        ([line(), "{"], 2, "line 2: not JSON"),
        (["[]"], 1, "line 1: not a JSON object"),
        ([line(solution="")], 1, "solution must be a non-empty string"),
        ([line(prompt=3)], 1, "prompt must be a non-empty string"),
    ],
)
def test_a_malformed_shard_is_refused(
    tmp_path: Path, lines: list[str], num_pairs: int, message: str
) -> None:
    with pytest.raises(ShardError, match=message):
        load_shard(shard(tmp_path / "shard.jsonl", lines, num_pairs))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    ref = training_pb2.ShardRef(path=str(tmp_path / "none"), sha256="0", num_pairs=1)
    with pytest.raises(ShardError, match="none: cannot be read"):
        load_shard(ref)


def drawn(pairs: list[Pair], seed: int, position: int, count: int) -> list[str]:
    order = DrawOrder(pairs, seed).from_position(position)
    return [pair.id for pair in itertools.islice(order, count)]


def test_each_epoch_holds_every_pair_once_in_an_order_of_its_own() -> None:
    ids = drawn(PAIRS, 0, 0, 21)
    epochs = [ids[0:7], ids[7:14], ids[14:21]]
    assert all(sorted(epoch) == sorted(pair.id for pair in PAIRS) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert drawn(PAIRS, 1, 0, 21) != ids


def test_the_order_resumes_anywhere_and_ignores_the_order_of_lines() -> None:
    ids = drawn(PAIRS, 0, 0, 30)
    for position in (0, 5, 7, 13, 14, 20):
        assert drawn(PAIRS, 0, position, 30 - position) == ids[position:]
    assert drawn(PAIRS[::-1], 0, 0, 30) == ids
