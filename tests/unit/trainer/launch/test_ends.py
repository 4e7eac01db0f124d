"""How a group ended, in a file."""

import json
from pathlib import Path

import pytest

from opsd.trainer.launch import torchrun
from opsd.trainer.launch.ends import RankEnd, write_group_end


def test_what_did_not_end_well_is_noted_by_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_group_end(
        tmp_path, [RankEnd(3, None, "b"), RankEnd(0, 0, "a"), RankEnd(1, -9), RankEnd(None, None)]
    )
    assert json.loads((tmp_path / "group.json").read_text()) == {
        "ranks": [
            {"rank": None, "exit_status": None, "host": ""},
            {"rank": 1, "exit_status": -9, "host": ""},
            {"rank": 3, "exit_status": None, "host": "b"},
        ]
    }
    assert capsys.readouterr().err.splitlines() == [
        "a worker without a rank: lost",
        "rank 1: exit status -9",
        "rank 3 on b: lost",
    ]


@pytest.mark.parametrize("arguments", [[], ["2"], ["two", "run.json"], ["2", "run.json", "more"]])
def test_wrong_usage_is_told_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert torchrun.main(arguments) == 2
    assert "NUM_RANKS" in capsys.readouterr().err
