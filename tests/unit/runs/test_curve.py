"""Exported adapters become points of a curve, each once, whatever is interrupted."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opsd.daemon.errors import AdapterError, EngineError, StoreError
from opsd.daemon.runs.curve import History, Moment, read_history
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.runs import RunState
from opsd.v1 import training_pb2

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab

EVERY_STEP = '{"export_every_steps": 1}'


def an_event(kind: str, time_unix_s: float, **fields: Any) -> training_pb2.TrainingEvent:
    step_s = fields.pop("step_s", 0.0)
    event = training_pb2.TrainingEvent(kind=kind, time_unix_s=time_unix_s, **fields)
    event.metrics.step_s = step_s
    event.metrics.generated_tokens = 100 * event.step
    return event


def test_time_runs_while_a_trainer_does() -> None:
    history = History()
    history.take(
        [
            an_event("started", 100.0),
            an_event("step", 105.0, step=1, step_s=3.5),
            an_event("export", 106.0, step=1, message="aa"),
            an_event("step", 109.0, step=2),
        ]
    )
    # Killed here; an hour later it goes on from a checkpoint before its first export.
    history.take(
        [
            an_event("started", 3700.0),
            an_event("export", 3704.0, step=1, message="bb"),
            an_event("export", 3708.0, step=2, message="cc"),
            an_event("saved", 3703.0, step=3),  # somebody set the clock
            an_event("finished", 3704.0, step=3),
        ]
    )
    assert [(e.sha256, e.moment) for e in history.exports.values()] == [
        ("bb", Moment(1, 100, 13.0)),
        ("cc", Moment(2, 200, 17.0)),
    ]
    assert (history.began_s, history.train_s) == (1.5, 18.0)


def test_no_events_tell_nothing(tmp_path: Path) -> None:
    assert read_history(tmp_path) == History()


async def test_a_curve_has_its_ends_and_every_export(lab: Lab) -> None:
    run = await lab.run(overrides_json=EVERY_STEP)
    assert run.state is RunState.AWAITING_APPROVAL
    found = [(p.step, p.generated_tokens, p.train_s, p.accuracy, p.tokens_mean) for p in run.curve]
    assert found == [
        (1, 100, 10.0, 0.5, 4.5),
        (2, 200, 20.0, 0.5, 4.5),
        (0, 0, 2.0, 0.25, 4.0),
        (3, 300, 30.0, 0.75, 5.0),
    ]
    assert {(point.suite, point.n) for point in run.curve} == {("medium", 2)}
    adapters = Path(run.run_dir) / "adapters"
    assert lab.trials.loaded == [
        (adapters / "step-00000001", f"{1:064x}"),
        (adapters / "step-00000002", f"{2:064x}"),
    ]
    assert (lab.trials.most_loaded, lab.trials.num_loaded) == (1, 0)
    # Two exports on two target items, then both adapters on all two items.
    assert (run.eval_done, run.eval_total) == (8, 8)
    assert json.loads(run.metrics_json)["loss"] == 0.25


async def test_an_exports_tokens_are_not_taken_for_a_step(lab: Lab) -> None:
    run = await lab.run("dies", overrides_json=EVERY_STEP)
    assert (run.step, json.loads(run.metrics_json)["loss"]) == (1, 1.0)


async def test_a_run_without_exports_has_no_curve(lab: Lab) -> None:
    run = await lab.run()
    assert run.curve == ()
    assert lab.evaluator.measured == []


async def test_where_another_adapter_serves_the_base_is_measured(lab: Lab) -> None:
    lab.evaluator.incumbent = "opsd-other"
    run = await lab.run(overrides_json=EVERY_STEP)
    assert lab.evaluator.measured[-1] == "base"
    assert [(p.step, p.accuracy) for p in run.curve if p.step in (0, 3)] == [(0, 0.5), (3, 0.75)]


async def test_a_restart_goes_on_with_the_curve(lab: Lab) -> None:
    lab.evaluator.hold, lab.evaluator.hold_measure_of = asyncio.Event(), 1
    lab.scenario("ok")
    controller = await lab.started()
    run = await lab.trigger(controller, overrides_json=EVERY_STEP)
    run = await lab.until(run, lambda row: len(row.curve) == 1 and lab.trials.num_loaded == 1)
    await controller.stop()
    assert lab.trials.num_loaded == 0
    assert lab.evaluator.calls == 0
    lab.evaluator.hold = None
    run = await lab.settled(await lab.started(), run)
    assert [point.step for point in run.curve] == [1, 2, 0, 3]
    assert [directory.name for directory, _ in lab.trials.loaded] == [
        "step-00000001",
        "step-00000002",
        "step-00000002",
    ]


async def test_trouble_on_the_way_is_tried_again_from_there(lab: Lab) -> None:
    lab.trials.errors = [EngineError("died")]
    lab.evaluator.measure_errors = [StoreError("away")]
    run = await lab.run(overrides_json=EVERY_STEP)
    assert run.state is RunState.AWAITING_APPROVAL
    assert [point.step for point in run.curve] == [1, 2, 0, 3]


async def test_an_export_that_is_refused_fails_the_run(lab: Lab) -> None:
    lab.trials.errors = [AdapterError("tensor q_proj holds NaN")]
    run = await lab.run(overrides_json=EVERY_STEP)
    assert run.error == "the adapter of step 1 is refused: tensor q_proj holds NaN"
    assert lab.evaluator.calls == 0


async def test_an_export_that_was_not_made_fails_the_run(lab: Lab) -> None:
    run = await lab.run("no_exports", overrides_json=EVERY_STEP)
    assert "no adapter exported after step 1, although export_every_steps" in run.error


async def test_exports_that_lead_elsewhere_are_refused(lab: Lab, tmp_path: Path) -> None:
    lab.evaluator.errors = [EngineError("later")] * 9
    lab.evaluator.hold, lab.evaluator.hold_measure_of = asyncio.Event(), 0
    lab.scenario("ok")
    controller = await lab.started()
    run = await lab.trigger(controller, overrides_json=EVERY_STEP)
    run = await lab.until(run, lambda _: lab.trials.num_loaded == 1)
    await controller.stop()
    adapters = Path(run.run_dir) / "adapters"
    shutil.move(adapters, tmp_path / "elsewhere")
    adapters.symlink_to(tmp_path / "elsewhere")
    run = await lab.settled(await lab.started(), run)
    assert "the adapter of step 1 lies outside" in run.error


async def test_a_run_that_measures_only_is_rejected_whatever_the_verdict(lab: Lab) -> None:
    for verdict in GateVerdict:
        lab.evaluator.verdict = verdict
        run = await lab.run(measure_only=True)
        assert [str(line.state) for line in run.history][-2:] == ["evaluating", "rejected"]
        assert run.reason == f"measured only; gate: {verdict}: as told"
        assert lab.store.get_adapter(run.candidate).state == "rejected"
        assert [gate.verdict for gate in lab.store.gates if gate.run_id == run.id] == [verdict]
        await lab.until(run, lambda row: row.candidate in lab.intake.withdrawn)


async def test_a_run_that_measures_only_trains_beside_no_evaluation(lab: Lab) -> None:
    lab.evaluator.hold = asyncio.Event()
    lab.scenario("ok")
    controller = await lab.started()
    first = await lab.trigger(controller, measure_only=True)
    second = await lab.trigger(controller, measure_only=True)
    await lab.until(first, lambda row: row.eval_done == 1)
    second = await lab.until(second, lambda row: "measured alone" in row.reason)
    assert second.state is RunState.QUEUED
    lab.evaluator.hold.set()
    assert (await lab.settled(controller, second)).state is RunState.REJECTED


@pytest.mark.parametrize("scenario", ["checked", "blind_teacher"])
async def test_the_teacher_check_is_kept_also_when_it_ends_the_run(lab: Lab, scenario: str) -> None:
    run = await lab.run(scenario)
    assert run.state is (RunState.AWAITING_APPROVAL if scenario == "checked" else RunState.FAILED)
    report = json.loads(run.teacher_check_json)
    assert (report["num_problems"], report["accuracy_with"]) == (8, 0.5)
