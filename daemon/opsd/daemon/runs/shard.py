"""The immutable training shard of one run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opsd.daemon.errors import InvalidInputError, TrainerFailure
from opsd.daemon.runs.files import file_sha256, write_atomically
from opsd.daemon.runs.ports import HeldOut, RunsStore
from opsd.daemon.runs.spec import read_spec
from opsd.daemon.types.pairs import Pair
from opsd.daemon.types.runs import Run
from opsd.daemon.types.text import prompt_key
from opsd.v1 import training_pb2

SHARD_NAME: Final = "shard.jsonl"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A shard on disk and the pairs it holds."""

    ref: training_pb2.ShardRef
    pair_ids: tuple[str, ...]
    num_held_out: int  # verified pairs left out because a suite holds their problem


def take_snapshot(
    run: Run,
    run_dir: Path,
    *,
    store: RunsStore,
    held_out: HeldOut,
    min_pairs: int,
    max_pairs: int,
) -> Snapshot:
    """Freezes the run's training data: writes the shard once and records its pairs in the store.

    Of several pairs with one prompt the newest goes in. Called again for a run whose shard is on
    disk, it takes that one, so that a restarted daemon goes on with the same data. Raises
    TrainerFailure when too few pairs are left, or when a suite has come to hold a problem of a
    shard that was already written.
    """
    path = run_dir / SHARD_NAME
    num_held_out = 0
    if path.exists():
        records = _read_records(path)
        _refuse_held_out(records, held_out, path)
    else:
        pairs = store.trainable_pairs(source=run.source, limit=max_pairs)
        kept = _without_held_out(pairs, held_out)
        num_held_out = len(pairs) - len(kept)
        kept = _newest_of_each_problem(kept)
        if len(kept) < min_pairs:
            raise TrainerFailure(too_few_pairs(len(kept), min_pairs, run.source, num_held_out))
        counts = store.solve_counts([pair.input.id for pair in kept])
        records = [
            _record(pair, counts.get(pair.input.id))
            for pair in sorted(kept, key=lambda pair: pair.input.id)
        ]
        write_atomically(path, _lines(records))
    pair_ids = tuple(record["id"] for record in records)
    store.record_snapshot(run.id, pair_ids)
    ref = training_pb2.ShardRef(path=str(path), sha256=file_sha256(path), num_pairs=len(pair_ids))
    return Snapshot(ref=ref, pair_ids=pair_ids, num_held_out=num_held_out)


def take_over(
    run: Run, run_dir: Path, other: Run, *, store: RunsStore, held_out: HeldOut
) -> Snapshot:
    """The same as ``take_snapshot``, but the data is byte for byte that of ``other``.

    Raises TrainerFailure when that run has no shard, or had another source, when its file is gone
    or changed, or when a suite has come to hold one of its problems.
    """
    require_same_source(run.source, other)
    if not other.spec_json:
        raise TrainerFailure(no_shard(other))
    ref = read_spec(other.spec_json).shard
    path = run_dir / SHARD_NAME
    if not path.exists():
        write_atomically(path, _shard_of(other, Path(ref.path)))
    if file_sha256(path) != ref.sha256:
        raise TrainerFailure(
            f"{ref.path}: the shard of run {other.id} is no longer what that run trained on: its "
            f"SHA-256 should be {ref.sha256}; trigger a run on the pairs of now instead"
        )
    records = _read_records(path)
    _refuse_held_out(records, held_out, path)
    pair_ids = tuple(record["id"] for record in records)
    store.record_snapshot(run.id, pair_ids)
    mine = training_pb2.ShardRef(path=str(path), sha256=ref.sha256, num_pairs=len(pair_ids))
    return Snapshot(ref=mine, pair_ids=pair_ids, num_held_out=0)


def require_same_source(source: str, other: Run) -> None:
    """Raises InvalidInputError when the data of ``other`` is of another source than asked for."""
    if source != other.source:
        raise InvalidInputError(
            f"source is {source!r}, but run {other.id}, whose data is asked for, trained on "
            f"{repr(other.source) if other.source else 'all sources'}: leave the source out"
        )


def no_shard(other: Run) -> str:
    """What to say about a run that never wrote down its data."""
    why = f" ({other.error or other.reason})" if other.error or other.reason else ""
    return (
        f"run {other.id} is {other.state}{why} and has no shard: there is no data of its to train "
        "on; name a run that has begun to train"
    )


def too_few_pairs(have: int, need: int, source: str, num_held_out: int = 0) -> str:
    """What to say about a run that has not enough to train on."""
    of_source = f" of source {source!r}" if source else ""
    left_out = f" ({num_held_out} more are held-out problems)" if num_held_out else ""
    return (
        f"{have} verified pairs{of_source} are there{left_out} but runs.min_pairs asks for {need}: "
        f"submit {need - have} more or lower runs.min_pairs"
    )


def _shard_of(other: Run, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TrainerFailure(
            f"{path}: the shard of run {other.id} cannot be read: {error.strerror}; put the file "
            "back, or trigger a run on the pairs of now"
        ) from error


def _without_held_out(pairs: Sequence[Pair], held_out: HeldOut) -> list[Pair]:
    # The key is computed anew: the stored one may stem from an older normal form.
    keys = [prompt_key(pair.input.prompt) for pair in pairs]
    refused = held_out.held_out_keys(keys)
    return [pair for pair, key in zip(pairs, keys, strict=True) if key not in refused]


def _newest_of_each_problem(pairs: Sequence[Pair]) -> list[Pair]:
    """A problem with several solutions is drawn no more often than the others."""
    newest = {pair.input.prompt: pair for pair in pairs}  # oldest first, so the last one stays
    return list(newest.values())


def _refuse_held_out(records: Sequence[dict[str, Any]], held_out: HeldOut, path: Path) -> None:
    keys = {prompt_key(record["prompt"]): record["id"] for record in records}
    refused = held_out.held_out_keys(list(keys))
    if refused:
        names = ", ".join(sorted(keys[key] for key in refused)[:5])
        raise TrainerFailure(
            f"{path}: {len(refused)} pairs have become held-out problems since the shard was "
            f"written ({names}, …): trigger a new run"
        )


def _record(pair: Pair, counts: tuple[int, int] | None) -> dict[str, Any]:
    given = pair.input
    solves = {} if counts is None else {"attempts": counts[0], "solved": counts[1]}
    return solves | {
        "id": given.id,
        "prompt": given.prompt,
        "solution": given.solution,
        "reference": given.reference,
        "verifier": given.verifier,
        "stratum": given.stratum,
    }


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    # ASCII escapes keep line separators such as U+2028 inside their line for every reader.
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
