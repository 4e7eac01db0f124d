"""From trigger to decision, and every way of not getting there."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from opsd.daemon.errors import (
    AdapterError,
    EngineError,
    InvalidInputError,
    NotReadyError,
    StateError,
)
from opsd.daemon.runs.metrics import run_loss_implementation
from opsd.daemon.runs.processes import run_processes
from opsd.daemon.types.adapters import AdapterState
from opsd.daemon.types.gate import GateVerdict
from opsd.daemon.types.runs import PoolLease, Run, RunState, TriggerKind

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab


def states(run: Run) -> list[str]:
    return [str(line.state) for line in run.history]


async def test_a_run_goes_from_trigger_to_a_persons_decision(lab: Lab) -> None:
    run = await lab.run()

    assert states(run) == ["queued", "preparing", "training", "evaluating", "awaiting_approval"]
    assert "pass" in run.reason
    assert (run.step, run.num_steps, run.generated_tokens, run.num_pairs) == (3, 3, 300, 40)
    assert json.loads(run.metrics_json)["loss"] == 0.25
    samples = [one for metric in run_loss_implementation.collect() for one in metric.samples]
    assert [(one.labels["implementation"], one.value) for one in samples] == [("native-avx2", 1.0)]
    assert (run.eval_done, run.eval_total, run.launches) == (4, 4, 1)
    assert run.candidate == lab.store.list_adapters()[0].name
    assert run.incumbent_at_start == "base"
    assert lab.store.lease is None
    assert [gate.run_id for gate in lab.store.gates] == [run.id]
    assert lab.intake.admitted == [(Path(run.run_dir) / "adapter", "a" * 64)]
    assert "scenario ok" in (Path(run.run_dir) / "trainer.log").read_text()


async def test_the_verdict_decides_where_a_run_goes(lab: Lab) -> None:
    lab.evaluator.verdict = GateVerdict.INCONCLUSIVE
    run = await lab.run()
    assert run.state is RunState.AWAITING_APPROVAL
    assert "inconclusive" in run.reason

    lab.evaluator.verdict = GateVerdict.FAIL
    run = await lab.run()
    assert run.state is RunState.REJECTED
    assert lab.store.get_adapter(run.candidate).state is AdapterState.REJECTED
    await lab.until(run, lambda row: lab.intake.withdrawn == [row.candidate])


async def test_solve_counts_go_into_the_next_runs_shard(lab: Lab) -> None:
    def counts(run: Run) -> set[tuple[int | None, int | None]]:
        lines = (Path(run.run_dir) / "shard.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return {(record.get("attempts"), record.get("solved")) for record in records}

    first = await lab.run("solves")
    assert counts(first) == {(None, None)}
    assert counts(await lab.run("solves")) == {(4, 1)}
    assert counts(await lab.run()) == {(8, 2)}


@pytest.mark.parametrize(
    ("scenario", "reason"),
    [
        ("garbage_rates", "not counts of attempts and solved"),
        ("dies", "exited with status 3 before it wrote its result"),
        ("no_result", "exited with status 0 before it wrote its result"),
        ("garbage_events", "events.jsonl holds 1 lines that are not events"),
        ("nan_event", "events.jsonl holds 1 lines that are not events"),
        ("absurd_step", "step 4000000000 of 3"),
        ("garbage_result", "not a RunResult"),
        ("wrong_run_id", 'run_id is "someone else\'s"'),
        ("failed", "no gradient arrived"),
        ("outside", "lies outside"),
        ("nan_result", "the last step's loss is nan"),
        ("no_sha", "adapter_sha256 '' is not"),
    ],
)
async def test_a_bad_trainer_fails_the_run_with_reason_and_log(
    lab: Lab, scenario: str, reason: str
) -> None:
    run = await lab.run(scenario)

    assert run.state is RunState.FAILED
    assert reason in run.error
    assert reason in run.reason
    assert f"scenario {scenario}" in run.log_tail
    assert run.launches == 1
    assert lab.store.lease is None
    assert lab.evaluator.calls == 0
    assert run_processes(run.id, None) == []


async def test_a_silent_trainer_is_killed(lab: Lab) -> None:
    lab.set_runs(stall_timeout_s=0.3)
    run = await lab.run("hangs")
    assert run.state is RunState.FAILED
    assert "stalled at step 1" in run.error
    assert run.step == 1
    assert run_processes(run.id, None) == []


async def test_a_trainer_that_never_begins_is_killed(lab: Lab) -> None:
    lab.set_runs(start_timeout_s=0.3)
    run = await lab.run("never_starts")
    assert "runs.start_timeout_s" in run.error


async def test_a_run_that_takes_too_long_is_killed(lab: Lab) -> None:
    lab.set_runs(max_wall_s=0.4)
    run = await lab.run("until_told")
    assert "runs.max_wall_s" in run.error
    assert run_processes(run.id, None) == []


async def test_a_trainer_that_lingers_after_its_result_is_ended_and_its_result_used(
    lab: Lab,
) -> None:
    run = await lab.run("lingers")
    assert run.state is RunState.AWAITING_APPROVAL
    assert run_processes(run.id, None) == []


async def test_the_log_tail_is_bounded_and_storable(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    run = await lab.trigger(controller)
    run = await lab.training(run)
    with (Path(run.run_dir) / "trainer.log").open("ab") as log:
        log.write(b"x" * 100_000 + b"\x00\xff the end\n")
    with (Path(run.run_dir) / "events.jsonl").open("ab") as events:
        events.write(b"garbage\n")
    run = await lab.settled(controller, run)
    assert run.state is RunState.FAILED
    assert len(run.log_tail) <= 16 << 10
    assert "\x00" not in run.log_tail
    assert "the end" in run.log_tail


async def test_an_adapter_that_is_refused_fails_the_run(lab: Lab) -> None:
    lab.intake.errors = [AdapterError("tensor q_proj holds NaN")]
    run = await lab.run()
    assert run.state is RunState.FAILED
    assert run.error == "the adapter is refused: tensor q_proj holds NaN"
    assert lab.store.lease is None


async def test_an_adapter_of_an_earlier_run_is_no_candidate(lab: Lab) -> None:
    first = await lab.run()
    adapter = lab.store.get_adapter(first.candidate)

    async def same(*_: object) -> object:
        return adapter

    lab.monkeypatch.setattr(lab.intake, "admit", same)
    run = await lab.run()
    assert run.state is RunState.FAILED
    assert f"the adapter of run {first.id}" in run.error
    assert lab.store.get_adapter(first.candidate).state is AdapterState.CANDIDATE


async def test_engine_trouble_is_tried_again_but_not_for_ever(lab: Lab) -> None:
    lab.evaluator.errors = [EngineError("died"), NotReadyError("starting"), EngineError("died")]
    run = await lab.run()
    assert run.state is RunState.AWAITING_APPROVAL
    assert lab.evaluator.calls == 4


async def test_an_engine_that_keeps_failing_fails_the_evaluation(lab: Lab) -> None:
    lab.evaluator.errors = [EngineError("died for good")] * 9
    run = await lab.run()
    assert run.state is RunState.FAILED
    assert "failed 3 times, the last time: died for good" in run.error
    await lab.until(run, lambda row: row.candidate in lab.intake.withdrawn)
    assert lab.store.get_adapter(run.candidate).state is AdapterState.REJECTED


async def test_an_engine_that_never_comes_up_fails_the_evaluation(lab: Lab) -> None:
    lab.evaluator.errors = [NotReadyError("starting")] * 10_000
    run = await lab.run()
    assert run.error == "evaluation failed: starting"


async def test_a_broken_gate_fails_the_run(lab: Lab) -> None:
    lab.evaluator.errors = [RuntimeError("a bug")]
    run = await lab.run()
    assert run.error == "evaluation failed: a bug"


async def test_a_run_that_cannot_be_moved_on_fails_after_some_tries(lab: Lab) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    lab.monkeypatch.setattr(lab.store, "record_snapshot", broken)
    run = await lab.run()
    assert run.state is RunState.FAILED
    assert "3 errors in a row while preparing" in run.error
    assert "a bug" in run.error
    assert lab.store.lease is None


async def test_the_pool_is_free_while_a_run_is_evaluated(lab: Lab) -> None:
    lab.evaluator.hold = asyncio.Event()
    lab.scenario("ok")
    controller = await lab.started()
    first = await lab.trigger(controller)
    await lab.until(first, lambda row: row.eval_done == 1)
    assert lab.store.lease is None
    second = await lab.trigger(controller)
    await lab.until(second, lambda row: row.state is RunState.EVALUATING)
    lab.evaluator.hold.set()
    for run in (first, second):
        assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL


async def test_one_run_trains_at_a_time_in_the_order_of_triggers(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    runs = [await lab.trigger(controller) for _ in range(3)]
    for position, run in enumerate(runs):
        run = await lab.until(run, lambda row: row.state is RunState.TRAINING)
        for later in runs[position + 1 :]:
            later = await lab.until(later, lambda row: "waits for the pool" in row.reason)
            assert later.state is RunState.QUEUED
        (Path(run.run_dir) / "go").touch()
        await lab.settled(controller, run)


async def test_another_holder_of_the_pool_is_waited_for(lab: Lab) -> None:
    lab.store.lease = PoolLease("another daemon", 0.0, math.inf)
    controller = await lab.started()
    run = await lab.trigger(controller)
    run = await lab.until(run, lambda row: "another daemon" in row.reason)
    assert run.state is RunState.QUEUED
    lab.store.lease = None
    assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL


async def test_a_lost_lease_ends_the_training(lab: Lab) -> None:
    pool = lab.config.pool.model_copy(update={"lease_ttl_s": 0.1})
    lab.config = lab.config.model_copy(update={"pool": pool})
    lab.scenario("until_told")
    controller = await lab.started()
    run = await lab.trigger(controller)
    await lab.training(run)
    lab.store.lease = PoolLease("a thief", 0.0, math.inf)
    run = await lab.settled(controller, run)
    assert "the pool's lease was lost to a thief" in run.error
    assert run_processes(run.id, None) == []
    assert lab.store.lease.holder == "a thief"


async def test_too_few_pairs_refuse_an_operator_and_fail_a_schedule(lab: Lab) -> None:
    lab.store.pairs = lab.store.pairs[:7]
    controller = await lab.started()
    with pytest.raises(StateError, match=r"7 verified pairs are there .* asks for 32: submit 25"):
        await lab.trigger(controller)
    assert lab.store.runs == {}
    run = await controller.trigger(TriggerKind.CRON, actor="scheduler", reason="")
    run = await lab.settled(controller, run)
    assert run.state is RunState.FAILED
    assert "7 verified pairs are there" in run.error
    assert lab.store.lease is None


async def test_bad_overrides_are_refused_at_the_trigger(lab: Lab) -> None:
    controller = await lab.started()
    with pytest.raises(InvalidInputError, match="output_dir cannot be set"):
        await lab.trigger(controller, overrides_json='{"output_dir": "/tmp"}')
    assert lab.store.runs == {}


async def test_the_same_request_triggers_one_run(lab: Lab) -> None:
    controller = lab.new_controller()
    one = await lab.trigger(controller, request_id="r1")
    two = await lab.trigger(controller, request_id="r1")
    assert one.id == two.id
    assert len(lab.store.runs) == 1


@pytest.mark.parametrize("scenario", ["until_told", "ignores_sigterm", "grandchild"])
async def test_cancelling_leaves_no_process_behind(lab: Lab, scenario: str) -> None:
    lab.scenario(scenario)
    controller = await lab.started()
    run = await lab.trigger(controller)
    run = await lab.training(run)
    assert run_processes(run.id, None)

    run = await controller.cancel(run.id, actor="ada", reason="a typo")

    assert run.state is RunState.CANCELLED
    assert run.reason == "cancelled by ada: a typo"
    assert run_processes(run.id, None) == []
    assert lab.store.lease is None
    with pytest.raises(StateError):
        await controller.cancel(run.id, actor="ada", reason="again")


async def test_a_queued_run_can_be_cancelled(lab: Lab) -> None:
    controller = lab.new_controller()
    run = await lab.trigger(controller)
    run = await controller.cancel(run.id, actor="ada", reason="")
    assert run.reason == "cancelled by ada: no reason given"


async def test_cancelling_stops_an_evaluation(lab: Lab) -> None:
    lab.evaluator.hold = asyncio.Event()
    controller = await lab.started()
    run = await lab.trigger(controller)
    await lab.until(run, lambda row: row.eval_done == 1)
    run = await controller.cancel(run.id, actor="ada", reason="enough")
    assert run.state is RunState.CANCELLED
    assert lab.store.get_adapter(run.candidate).state is AdapterState.REJECTED
    assert lab.store.gates == []


async def test_a_run_that_awaits_approval_can_be_cancelled_but_a_canary_cannot(lab: Lab) -> None:
    run = await lab.run()
    controller = lab.controllers[-1]
    lab.store.update_run(run.id, state=RunState.CANARY)
    with pytest.raises(StateError, match="roll it back"):
        await controller.cancel(run.id, actor="ada", reason="no")
    assert lab.store.get_run(run.id).cancel_reason == ""
    lab.store.update_run(run.id, state=RunState.AWAITING_APPROVAL)
    run = await controller.cancel(run.id, actor="ada", reason="no")
    assert run.state is RunState.CANCELLED
    assert lab.store.get_adapter(run.candidate).state is AdapterState.REJECTED
    assert lab.intake.withdrawn == [run.candidate]


async def test_a_cancellation_asked_for_in_the_store_is_carried_out(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    run = await lab.trigger(controller)
    await lab.training(run)
    lab.store.request_cancel(run.id, actor="ada", reason="from elsewhere")
    run = await lab.settled(controller, run)
    assert run.state is RunState.CANCELLED


async def test_a_store_that_is_down_fails_no_run(lab: Lab) -> None:
    lab.scenario("until_told")
    controller = await lab.started()
    run = await lab.trigger(controller)
    run = await lab.training(run)
    lab.store.down = True
    (Path(run.run_dir) / "go").touch()
    await asyncio.sleep(0.5)
    lab.store.down = False
    assert (await lab.settled(controller, run)).state is RunState.AWAITING_APPROVAL


async def test_watching_shows_progress_and_ends_with_the_run(lab: Lab) -> None:
    controller = await lab.started()
    run = await lab.trigger(controller)
    rows = [row async for row in controller.watch(run.id[:8])]
    assert rows[-1].state is RunState.AWAITING_APPROVAL
    assert len({row.state for row in rows}) >= 3
    assert all(one != two for one, two in pairwise(rows))
    assert [row.state async for row in controller.watch(run.id)] == [RunState.AWAITING_APPROVAL]


async def test_watching_sees_what_others_change(lab: Lab) -> None:
    run = await lab.run()
    controller = lab.controllers[-1]
    lab.store.update_run(run.id, state=RunState.CANARY)
    rows = controller.watch(run.id)
    assert (await anext(rows)).state is RunState.CANARY
    lab.store.update_run(run.id, state=RunState.PROMOTED)
    assert [row.state async for row in rows] == [RunState.PROMOTED]


async def test_candidates_of_runs_that_are_over_are_rejected_at_the_start(lab: Lab) -> None:
    waiting, failed = await lab.run(), await lab.run()
    lab.store.update_run(failed.id, state=RunState.FAILED)
    adapters = lab.store.adapters
    adapters[failed.candidate] = replace(adapters[failed.candidate], state=AdapterState.CANDIDATE)
    # One of a run that nobody knows holds up nothing.
    unknown = replace(adapters[waiting.candidate], name="opsd-unknown", run_id="unknown")
    adapters[unknown.name] = unknown
    await lab.started()
    await lab.until(failed, lambda _: failed.candidate in lab.intake.withdrawn)
    assert adapters[failed.candidate].state is AdapterState.REJECTED
    assert adapters[waiting.candidate].state is AdapterState.CANDIDATE


async def test_a_restarted_daemon_adopts_the_trainer_that_still_runs(lab: Lab) -> None:
    lab.scenario("until_told")
    run = await lab.trigger(await lab.started())
    run = await lab.training(run)
    before = run_processes(run.id, None)

    controller = await lab.started()
    await asyncio.sleep(0.1)
    assert run_processes(run.id, None) == before
    (Path(run.run_dir) / "go").touch()
    run = await lab.settled(controller, run)
    assert run.state is RunState.AWAITING_APPROVAL
    assert run.launches == 1


async def test_a_restarted_daemon_takes_a_result_that_came_while_it_was_down(lab: Lab) -> None:
    lab.scenario("until_told")
    first = await lab.started()
    run = await lab.trigger(first)
    run = await lab.training(run)
    await first.stop()
    (Path(run.run_dir) / "go").touch()
    await lab.until(run, lambda _: not run_processes(run.id, None))

    run = await lab.settled(await lab.started(), run)
    assert run.state is RunState.AWAITING_APPROVAL
    assert run.launches == 1


async def lose_trainer(lab: Lab, run: Run) -> None:
    """The trainer goes down with the daemon."""
    await lab.controllers[-1].stop()
    lab.launcher.terminate(run.id, Path(run.run_dir), grace_s=0.0)


@pytest.mark.parametrize("leftover", ["nothing", "half a line", "a result: stopped by a signal"])
async def test_a_trainer_lost_with_the_daemon_is_launched_again_but_not_for_ever(
    lab: Lab, leftover: str
) -> None:
    lab.set_runs(max_launches=2)
    lab.scenario("until_told")
    run = await lab.trigger(await lab.started())
    run = await lab.training(run)
    await lose_trainer(lab, run)
    run_dir = Path(run.run_dir)
    if leftover == "half a line":
        with (run_dir / "events.jsonl").open("ab") as events:
            events.write(b'{"kind": "st')
    elif leftover != "nothing":
        result = {"run_id": run.id, "outcome": "RUN_OUTCOME_CANCELLED"}
        (run_dir / "result.json").write_text(json.dumps(result))

    await lab.started()
    run = await lab.until(run, lambda row: row.launches == 2)
    await lab.until(run, lambda _: bool(run_processes(run.id, None)))
    assert run.state is RunState.TRAINING
    assert not (run_dir / "result.json").exists()
    await lose_trainer(lab, run)

    run = await lab.settled(await lab.started(), run)
    assert run.state is RunState.FAILED
    assert "has been started 2 times (runs.max_launches)" in run.error


async def test_an_adopted_trainer_that_is_killed_is_started_again(lab: Lab) -> None:
    lab.scenario("until_told")
    run = await lab.trigger(await lab.started())
    run = await lab.training(run)
    controller = await lab.started()
    await asyncio.sleep(0.1)
    lab.launcher.terminate(run.id, Path(run.run_dir), grace_s=0.0)
    run = await lab.until(run, lambda row: row.launches == 2)
    (Path(run.run_dir) / "go").touch()
    run = await lab.settled(controller, run)
    assert run.state is RunState.AWAITING_APPROVAL


async def test_a_restart_in_the_middle_of_a_preparation_keeps_the_shard(lab: Lab) -> None:
    stage = lab.new_controller()
    run = await lab.trigger(stage)
    real = lab.store.record_snapshot

    def killed(*_: object, **__: object) -> None:
        raise RuntimeError("killed here")

    lab.monkeypatch.setattr(lab.store, "record_snapshot", killed)
    run = await stage.reconcile(await stage.reconcile(run))
    assert run.state is RunState.PREPARING
    lab.monkeypatch.setattr(lab.store, "record_snapshot", real)
    lab.store.pairs.append(lab.store.pairs[0])
    run = await lab.settled(await lab.started(), run)
    assert run.state is RunState.AWAITING_APPROVAL
    assert run.num_pairs == 40


async def test_a_restart_in_the_middle_of_an_evaluation_evaluates_again(lab: Lab) -> None:
    lab.evaluator.hold = asyncio.Event()
    run = await lab.trigger(await lab.started())
    await lab.until(run, lambda row: row.eval_done == 1)
    lab.evaluator.hold = None
    run = await lab.settled(await lab.started(), run)
    assert run.state is RunState.AWAITING_APPROVAL
    assert len(lab.store.gates) == 1
