"""The training shard: what is in it, that it stays, and that nothing held out gets in."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsd.daemon.errors import TrainerFailure
from opsd.daemon.runs.shard import Snapshot, take_snapshot
from opsd.daemon.types.pair_sets import Draw, DrawPolicy
from opsd.daemon.types.runs import Run, RunState, TriggerKind
from opsd.daemon.types.text import prompt_key

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab

RUN = Run("run-1", RunState.PREPARING, TriggerKind.OPERATOR, "ada", "", 0.0, 0.0)


def snapshot(lab: Lab, run_dir: Path, *, max_pairs: int = 1000, source: str = "") -> Snapshot:
    return take_snapshot(
        replace(RUN, source=source),
        run_dir,
        store=lab.store,
        held_out=lab.held_out,
        min_pairs=3,
        policy=DrawPolicy(max_pairs),
    )


async def test_a_shard_holds_the_pairs_sorted_and_is_what_its_digest_says(
    lab: Lab, tmp_path: Path
) -> None:
    lab.store.pairs = list(reversed(lab.store.pairs[:5]))
    shot = snapshot(lab, tmp_path)
    data = (tmp_path / "shard.jsonl").read_bytes()
    records = [json.loads(line) for line in data.splitlines()]
    assert [record["id"] for record in records] == sorted(record["id"] for record in records)
    assert records[0] == {
        "id": "00000000-0000-4000-8000-000000000000",
        "prompt": "What is 0+1?",
        "solution": "1",
        "reference": "1",
        "verifier": "numeric",
        "stratum": "easy",
    }
    assert shot.ref.sha256 == hashlib.sha256(data).hexdigest()
    assert shot.ref.num_pairs == 5
    assert lab.store.snapshots["run-1"] == shot.pair_ids


async def test_held_out_problems_stay_out_whatever_key_they_were_stored_with(
    lab: Lab, tmp_path: Path
) -> None:
    stale = replace(lab.store.pairs[2], prompt_key="an older normal form's")
    lab.store.pairs[2] = stale
    lab.held_out.keys = {prompt_key("what is 2+1"), prompt_key("What is 3+1?")}
    shot = snapshot(lab, tmp_path)
    assert shot.num_held_out == 2
    assert stale.input.id not in shot.pair_ids
    assert len(shot.pair_ids) == 38


async def test_a_written_shard_stays_and_is_looked_at_again(lab: Lab, tmp_path: Path) -> None:
    first = snapshot(lab, tmp_path)
    lab.store.pairs = lab.store.pairs[:10]
    assert snapshot(lab, tmp_path) == first
    lab.held_out.keys = {prompt_key("What is 0+1?")}
    with pytest.raises(TrainerFailure, match="held-out problems since the shard was written"):
        snapshot(lab, tmp_path)


async def test_too_few_pairs_are_said_so(lab: Lab, tmp_path: Path) -> None:
    lab.store.pairs = lab.store.pairs[:4]
    lab.held_out.keys = {prompt_key(pair.input.prompt) for pair in lab.store.pairs[:2]}
    with pytest.raises(TrainerFailure, match=r"2 verified .*2 more are held-out.*submit 1 more"):
        snapshot(lab, tmp_path)
    assert os.listdir(tmp_path) == []
    with pytest.raises(TrainerFailure, match="0 verified pairs of source 'web'"):
        snapshot(lab, tmp_path, source="web")


async def test_the_newest_pairs_go_in(lab: Lab, tmp_path: Path) -> None:
    shot = snapshot(lab, tmp_path, max_pairs=4)
    assert [pair_id[-2:] for pair_id in shot.pair_ids] == ["36", "37", "38", "39"]


async def test_a_run_that_caps_leave_too_small_says_so(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tuple(lab.store.pairs[:2])

    def capped(*_: object, **__: object) -> Draw:
        return Draw(pairs, num_available=40, num_held_out=1, last_seq=40)

    monkeypatch.setattr(lab.store, "draw_pairs", capped)
    with pytest.raises(TrainerFailure, match=r"37 more repeat .*max_submitter_share = 0\.5"):
        take_snapshot(
            RUN,
            tmp_path,
            store=lab.store,
            held_out=lab.held_out,
            min_pairs=3,
            policy=DrawPolicy(20, max_submitter_share=0.5),
        )
