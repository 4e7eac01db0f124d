"""solve-rates.json as trainers write it, and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest

from opsd.daemon.errors import TrainerFailure
from opsd.daemon.runs.rates import RATES_NAME, read_rates


def test_counts_are_read_and_none_is_no_error(tmp_path: Path) -> None:
    assert read_rates(tmp_path) == {}
    (tmp_path / RATES_NAME).write_text('{"a": {"attempts": 3, "solved": 2}}')
    assert read_rates(tmp_path) == {"a": (3, 2)}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '{"a": 3}',
        '{"a": {"attempts": 3}}',
        '{"a": {"attempts": 3, "solved": 4}}',
        '{"a": {"attempts": 3, "solved": -1}}',
        '{"a": {"attempts": 3.5, "solved": 1}}',
        '{"a": {"attempts": true, "solved": true}}',
        '{"a": {"attempts": 99999999999, "solved": 1}}',
    ],
)
def test_garbage_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / RATES_NAME).write_text(text)
    with pytest.raises(TrainerFailure, match=RATES_NAME):
        read_rates(tmp_path)
