"""Reading events.jsonl while it grows, whatever stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from opsd.daemon.runs.events import EventReader, prepare_for_append


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_events_come_once_and_whole(path: Path) -> None:
    reader = EventReader(path)
    assert reader.read() == []
    append(path, b'{"kind": "started"}\n{"kind": "st')
    assert [event.kind for event in reader.read()] == ["started"]
    assert reader.read() == []
    append(path, b'ep", "step": 4, "metrics": {"loss": 0.5}}\n')
    (event,) = reader.read()
    assert (event.kind, event.step, event.metrics.loss) == ("step", 4, 0.5)
    assert (reader.num_events, reader.num_garbage) == (2, 0)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"{}",
        b'{"kind": 3}',
        b'{"kind": "step", "metrics": {"loss": NaN}}',
        b'{"kind": "step", "step": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
    ],
)
def test_garbage_is_counted_and_shown_and_does_not_stop_the_reader(path: Path, line: bytes) -> None:
    append(path, b'{"kind": "started"}\n' + line + b'\nmore\n{"kind": "finished"}\n')
    reader = EventReader(path)
    assert [event.kind for event in reader.read()] == ["started", "finished"]
    assert reader.num_garbage == 2
    assert len(reader.first_garbage) < 2000


def test_fields_of_a_newer_trainer_are_skipped(path: Path) -> None:
    append(path, b'{"kind": "step", "brand_new": [1]}\n')
    assert len(EventReader(path).read()) == 1


def test_a_line_without_end_is_garbage(path: Path) -> None:
    append(path, b"x" * (3 << 20))
    reader = EventReader(path)
    reader.read()
    reader.read()
    assert reader.num_garbage == 1


def test_only_an_unfinished_last_line_is_cut_off(path: Path, tmp_path: Path) -> None:
    assert prepare_for_append(tmp_path) == 0
    append(path, b'{"kind": "started"}\n{"ki')
    assert prepare_for_append(tmp_path) == 20
    assert path.read_bytes() == b'{"kind": "started"}\n'
    assert prepare_for_append(tmp_path) == 20
    append(path, b'{"kind": "step"}\n')
    assert [event.kind for event in EventReader(path, offset=20).read()] == ["step"]
