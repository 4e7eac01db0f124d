"""Leak canaries in shards: in what a teacher reads, never in what is imitated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from opsd.daemon.app.collecting import Canaries
from opsd.daemon.types.runs import Run, RunState

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab

ALL = Canaries(b"0123456789abcdef", 1.0)
SFT = json.dumps({"objective": {"method": "METHOD_SFT"}})


def solutions(run: Run) -> list[str]:
    lines = (Path(run.run_dir) / "shard.jsonl").read_text().splitlines()
    return [json.loads(line)["solution"] for line in lines]


async def test_what_the_teacher_reads_carries_them(lab: Lab) -> None:
    lab.canaries = ALL
    run = await lab.run()
    assert run.state is RunState.AWAITING_APPROVAL
    assert all(len(ALL.find(text)) == 1 for text in solutions(run))
    assert all(not ALL.find(pair.input.solution) for pair in lab.store.pairs)


async def test_what_is_imitated_carries_none(lab: Lab) -> None:
    lab.canaries = ALL
    run = await lab.run(overrides_json=SFT)
    assert run.state is RunState.AWAITING_APPROVAL, run.error
    assert not any(ALL.find(text) for text in solutions(run))


async def test_a_planted_shard_is_not_taken_over_to_be_imitated(lab: Lab) -> None:
    lab.canaries = ALL
    first = await lab.run()
    second = await lab.run(overrides_json=SFT, same_data_as=first.id)
    assert second.state is RunState.FAILED
    assert "carry leak canaries" in second.error
