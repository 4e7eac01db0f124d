"""Events are whole lines, numbered, and silent when nothing happens."""

import itertools
import json
import time
from pathlib import Path

import pytest

from opsd.trainer import failpoints
from opsd.trainer.events import EventLog
from opsd.trainer.schedule import learning_rate
from opsd.v1 import training_pb2


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_heartbeats_come_from_progress_at_most_once_an_interval(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, num_steps=3, heartbeat_interval_s=0.1)
    log.write("started")
    for _ in range(50):
        log.heartbeat_if_due()
    assert [line["kind"] for line in lines(path)] == ["started"]
    time.sleep(0.15)
    assert len(lines(path)) == 1, "no progress, no heartbeat"
    log.heartbeat_if_due()
    log.heartbeat_if_due()
    assert [line["kind"] for line in lines(path)] == ["started", "heartbeat"]
    log.close()


def test_names_are_the_protos_and_zeros_are_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, num_steps=3, heartbeat_interval_s=1)
    log.write("step", metrics=training_pb2.StepMetrics(grad_norm=2.0))
    log.close()
    (line,) = lines(path)
    assert (line["seq"], line["num_steps"], line["step"]) == ("0", 3, 0)
    metrics = line["metrics"]
    assert isinstance(metrics, dict)
    assert (metrics["grad_norm"], metrics["loss"]) == (2.0, 0.0)


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "step"}\n{"ki')
    log = EventLog(path, num_steps=3, heartbeat_interval_s=1)
    log.write("started")
    log.close()
    assert [line["kind"] for line in lines(path)] == ["step", "started"]


def test_other_ranks_write_nothing() -> None:
    log = EventLog(None, num_steps=3, heartbeat_interval_s=0)
    log.write("started")
    log.heartbeat_if_due()
    log.close()


def test_the_rate_warms_up_and_decays() -> None:
    spec = training_pb2.OptimSpec(
        num_steps=100, learning_rate=1.0, warmup_steps=5, final_lr_fraction=0.1
    )
    rates = [learning_rate(spec, step) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    falls = [before - after for before, after in itertools.pairwise(rates[4:])]
    assert falls == pytest.approx([falls[0]] * len(falls)), "linear"
    assert rates[-1] - falls[0] == pytest.approx(0.1)
    flat = training_pb2.OptimSpec(num_steps=1, learning_rate=1.0)
    assert learning_rate(flat, 0) == 1.0


def test_failpoints_are_off_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(failpoints.VARIABLE, raising=False)
    assert not failpoints.armed("nan-at-step", 0)
    monkeypatch.setenv(failpoints.VARIABLE, "nan-at-step:2")
    assert [failpoints.armed("nan-at-step", step) for step in (1, 2, 3)] == [False, True, False]
    assert not failpoints.armed("garbage-result")
    monkeypatch.setenv(failpoints.VARIABLE, "no-such-thing")
    with pytest.raises(ValueError, match="must be one of"):
        failpoints.armed("nan-at-step", 0)
