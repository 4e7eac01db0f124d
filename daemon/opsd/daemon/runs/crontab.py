"""Crontab expressions with crontab's own meaning.

APScheduler reads the five fields but counts weekdays from Monday = 0 and wants day of month *and*
day of week to match where crontab(5) says Sunday = 0 and *or*.
"""

from __future__ import annotations

import re
from datetime import tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from opsd.daemon.errors import ConfigError

_DAYS: Final = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_WEEKDAY: Final = re.compile(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?")


def cron_trigger(expression: str, timezone: str) -> Any:
    """An APScheduler trigger; raises ConfigError naming the key that is wrong."""
    zone = _zone(timezone)
    fields = expression.split()
    if len(fields) != 5:
        raise ConfigError(
            f"runs.triggers.cron: {expression!r} has {len(fields)} fields; write five: minute, "
            "hour, day of month, month, day of week, e.g. '0 3 * * *'"
        )
    minute, hour, day, month, weekday = fields
    try:
        days = _weekdays(weekday)
        common = {"minute": minute, "hour": hour, "month": month, "timezone": zone}
        if day.startswith("*") or weekday.startswith("*"):
            return CronTrigger(day=day, day_of_week=days, **common)
        return OrTrigger([CronTrigger(day=day, **common), CronTrigger(day_of_week=days, **common)])
    except ValueError as error:
        raise ConfigError(
            f"runs.triggers.cron: {expression!r}: {error}; see crontab(5) for the five fields"
        ) from error


def _zone(timezone: str) -> tzinfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"runs.triggers.timezone: {timezone!r} is not a time zone; write e.g. 'UTC' or "
            "'Europe/Berlin'"
        ) from error


def _weekdays(field: str) -> str:
    """crontab's day of week in APScheduler's names."""
    if field == "*":
        return "*"
    days: set[int] = set()
    for part in field.lower().split(","):
        match = _WEEKDAY.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is not a day of week")
        first, last, step = match.groups()
        start = _weekday(first) if first else 0
        end = _weekday(last) if last else (6 if first is None or step else start)
        if end < start:
            raise ValueError(f"{part!r} ends before it starts")
        if step == "0":
            raise ValueError(f"{part!r} has a step of 0")
        days.update(day % 7 for day in range(start, end + 1, int(step or 1)))
    return ",".join(_DAYS[day] for day in sorted(days))


def _weekday(name: str) -> int:
    if name in _DAYS:
        return _DAYS.index(name)
    if name.isdecimal() and int(name) <= 7:
        return int(name)
    raise ValueError(f"{name!r} is not a day of week: 0-7 (Sunday is 0 and 7) or sun … sat")
