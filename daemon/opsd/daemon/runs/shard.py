"""The immutable training shard of one run."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from opsd.daemon.errors import InvalidInputError, TrainerFailure
from opsd.daemon.runs.files import file_sha256, write_atomically
from opsd.daemon.runs.ports import Canaries, HeldOut, NoCanaries, RunsStore
from opsd.daemon.runs.spec import read_spec
from opsd.daemon.types.pair_sets import Draw, DrawPolicy
from opsd.daemon.types.pairs import Pair
from opsd.daemon.types.runs import Run
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
    policy: DrawPolicy,
    canaries: Canaries | None = None,
) -> Snapshot:
    """Freezes the run's training data: writes the shard once and records its pairs in the store.

    The store draws the pairs. Called again for a run whose shard is on disk, it takes that one, so
    that a restarted daemon goes on with the same data. Raises TrainerFailure when too few pairs
    are left, or when a suite has come to hold a problem of a shard that was already written.
    ``canaries`` are planted in solutions, for methods whose student never sees them.
    """
    path = run_dir / SHARD_NAME
    num_held_out = last_seq = 0
    if path.exists():
        records = _read_records(path)
        _refuse_held_out(records, held_out, path)
    else:
        draw = store.draw_pairs(
            run.id,
            policy,
            source=run.source,
            # Looked at anew, whatever was said when a pair came in: suites and rules change.
            held_out=lambda prompts: {p for p in prompts if _is_held_out(p, held_out)},
        )
        kept, num_held_out, last_seq = draw.pairs, draw.num_held_out, draw.last_seq
        if len(kept) < min_pairs:
            raise TrainerFailure(
                too_few_pairs(len(kept), min_pairs, run.source, num_held_out)
                + _because_of_caps(draw, policy)
            )
        counts = store.solve_counts([pair.input.id for pair in kept])
        records = [
            _record(pair, counts.get(pair.input.id), canaries or NoCanaries())
            for pair in sorted(kept, key=lambda pair: pair.input.id)
        ]
        write_atomically(path, _lines(records))
    pair_ids = tuple(record["id"] for record in records)
    store.record_snapshot(run.id, pair_ids, last_seq=last_seq)
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


def refuse_canaries(path: Path, canaries: Canaries) -> None:
    """For a method that imitates solutions: raises TrainerFailure when the shard carries leak
    canaries, which the model would learn to write."""
    if any(canaries.find(record["solution"]) for record in _read_records(path)):
        raise TrainerFailure(
            f"{path}: its solutions carry leak canaries (collect.hygiene.canary_fraction), and "
            "this run's method trains on solutions word for word: trigger it on the pairs of now"
        )


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


def _is_held_out(prompt: str, held_out: HeldOut) -> bool:
    # Tens of thousands of look-ups in a row: whoever serves meanwhile gets the interpreter between.
    time.sleep(0)
    return held_out.is_held_out(prompt) is not None


def _because_of_caps(draw: Draw, policy: DrawPolicy) -> str:
    """Why a draw from enough pairs may come out small."""
    left_out = draw.num_available - draw.num_held_out - len(draw.pairs)
    if left_out <= 0 or min(policy.max_submitter_share, policy.max_self_made_share) >= 1.0:
        return ""
    return (
        f"; {left_out} more repeat a problem or are kept out by collect.max_submitter_share = "
        f"{policy.max_submitter_share:g} and collect.max_self_made_share = "
        f"{policy.max_self_made_share:g}"
    )


def _refuse_held_out(records: Sequence[dict[str, Any]], held_out: HeldOut, path: Path) -> None:
    refused = [record["id"] for record in records if _is_held_out(record["prompt"], held_out)]
    if refused:
        names = ", ".join(sorted(refused)[:5])
        raise TrainerFailure(
            f"{path}: {len(refused)} pairs have become held-out problems since the shard was "
            f"written ({names}, …): trigger a new run"
        )


def _record(pair: Pair, counts: tuple[int, int] | None, canaries: Canaries) -> dict[str, Any]:
    given = pair.input
    solves = {} if counts is None else {"attempts": counts[0], "solved": counts[1]}
    return solves | {
        "id": given.id,
        "prompt": given.prompt,
        "solution": canaries.planted(given.id, given.solution),
        "reference": given.reference,
        "verifier": given.verifier,
        "stratum": given.stratum,
    }


def _lines(records: Sequence[dict[str, Any]]) -> bytes:
    # ASCII escapes keep line separators such as U+2028 inside their line for every reader.
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


def _read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]
