"""Triggers that nobody pulls: when they fire, and when they had better not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from opsd.daemon.config.schema import RunsConfig
from opsd.daemon.errors import ConfigError
from opsd.daemon.runs.crontab import cron_trigger
from opsd.daemon.runs.scheduler import RunScheduler
from opsd.daemon.types.runs import Run, RunState, TriggerKind

if TYPE_CHECKING:
    from tests.unit.runs.conftest import Lab

FRIDAY = datetime(2026, 1, 2, 12, 0, tzinfo=UTC)


def fire_times(expression: str, number: int, timezone: str = "UTC") -> list[str]:
    trigger = cron_trigger(expression, timezone)
    times = []
    now, previous = FRIDAY, None
    for _ in range(number):
        previous = trigger.get_next_fire_time(previous, now)
        now = previous
        times.append(previous.astimezone(UTC).strftime("%a %d %H:%M"))
    return times


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 3 * * *", ["Sat 03 03:00", "Sun 04 03:00"]),
        ("0 3 * * 0", ["Sun 04 03:00", "Sun 11 03:00"]),
        ("0 3 * * 7", ["Sun 04 03:00", "Sun 11 03:00"]),
        ("0 3 * * 1-5", ["Mon 05 03:00", "Tue 06 03:00"]),
        ("0 3 * * 5-7", ["Sat 03 03:00", "Sun 04 03:00", "Fri 09 03:00"]),
        ("0 3 * * mon,Wed", ["Mon 05 03:00", "Wed 07 03:00"]),
        ("0 3 * * */2", ["Sat 03 03:00", "Sun 04 03:00", "Tue 06 03:00"]),
        ("0 3 6 * 0", ["Sun 04 03:00", "Tue 06 03:00", "Sun 11 03:00"]),
        ("*/30 * * * *", ["Fri 02 12:00", "Fri 02 12:30"]),
    ],
)
def test_a_crontab_expression_means_what_crontab_means(
    expression: str, expected: list[str]
) -> None:
    assert fire_times(expression, len(expected)) == expected


def test_a_crontab_expression_is_read_in_its_time_zone() -> None:
    assert fire_times("0 3 * * *", 1, "Asia/Tokyo") == ["Fri 02 18:00"]


@pytest.mark.parametrize(
    "expression",
    ["", "* * * *", "60 * * * *", "0 3 * * 8", "0 3 * * 3-1", "0 3 * * x", "a b c d e"],
)
def test_a_bad_crontab_expression_names_its_key(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"^runs\.triggers\.cron: "):
        cron_trigger(expression, "UTC")


def test_a_bad_time_zone_names_its_key(lab: Lab) -> None:
    config = RunsConfig.model_validate({"triggers": {"cron": "0 3 * * *", "timezone": "Mars/X"}})
    with pytest.raises(ConfigError, match=r"^runs\.triggers\.timezone: 'Mars/X'"):
        RunScheduler(store=lab.store, config=config, trigger=lab.new_controller().trigger)


async def scheduler(lab: Lab, **triggers: object) -> RunScheduler:
    config = RunsConfig.model_validate({"triggers": triggers, "min_pairs": 5})
    made = RunScheduler(store=lab.store, config=config, trigger=lab.new_controller().trigger)
    await made.start()
    return made


async def first_run(lab: Lab) -> Run:
    async with asyncio.timeout(20):
        while not lab.store.runs:  # noqa: ASYNC110 - the store has no event to wait for
            await asyncio.sleep(0.01)
    return next(iter(lab.store.runs.values()))


async def test_an_interval_triggers_but_never_stacks(lab: Lab) -> None:
    made = await scheduler(lab, interval_s=0.05)
    run = await first_run(lab)
    assert (run.trigger, run.actor) == (TriggerKind.INTERVAL, "scheduler")
    await asyncio.sleep(0.3)
    assert len(lab.store.runs) == 1
    lab.store.update_run(run.id, state=RunState.AWAITING_APPROVAL)
    async with asyncio.timeout(20):
        while len(lab.store.runs) < 2:  # noqa: ASYNC110 - the store has no event to wait for
            await asyncio.sleep(0.01)
    await made.stop()


async def test_an_interval_is_counted_from_the_last_run_of_its_kind(lab: Lab) -> None:
    controller = lab.new_controller()
    await controller.trigger(TriggerKind.INTERVAL, actor="scheduler", reason="")
    (run,) = lab.store.runs.values()
    lab.store.update_run(run.id, state=RunState.FAILED, created_unix_s=run.created_unix_s - 3599)
    made = await scheduler(lab, interval_s=3600.0)
    async with asyncio.timeout(20):
        while len(lab.store.runs) < 2:  # noqa: ASYNC110 - the store has no event to wait for
            await asyncio.sleep(0.01)
    await made.stop()


async def test_new_pairs_trigger_once_for_the_same_pairs(lab: Lab) -> None:
    pairs = lab.store.pairs
    lab.store.pairs = pairs[:4]
    made = await scheduler(lab, new_pairs=10, check_every_s=0.02)
    await asyncio.sleep(0.2)
    assert not lab.store.runs
    lab.store.pairs = pairs[:10]
    run = await first_run(lab)
    assert (run.trigger, run.reason) == (TriggerKind.NEW_PAIRS, "10 new verified pairs")
    # It fails before its snapshot: the same pairs are still new, but have had their turn.
    lab.store.update_run(run.id, state=RunState.FAILED)
    await asyncio.sleep(0.2)
    assert len(lab.store.runs) == 1
    await made.stop()


async def test_new_pairs_wait_for_the_least_number_of_a_run(lab: Lab) -> None:
    lab.store.pairs = lab.store.pairs[:4]
    made = await scheduler(lab, new_pairs=2, check_every_s=0.02)
    await asyncio.sleep(0.2)
    assert not lab.store.runs
    await made.stop()


async def test_cron_triggers_and_a_store_that_is_down_is_survived(lab: Lab) -> None:
    made = await scheduler(lab, cron="* * * * *", new_pairs=1, check_every_s=0.02)
    lab.store.down = True
    await asyncio.sleep(0.1)
    await made._on_cron()
    assert not lab.store.runs
    lab.store.down = False
    await made.stop()
    await made._on_cron()
    assert (await first_run(lab)).state is RunState.QUEUED
