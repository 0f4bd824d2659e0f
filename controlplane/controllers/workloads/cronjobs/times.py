"""When a schedule is due: the next time after, and the last one before, in a time zone.

Pure: all times are wall seconds. Promises what users of robfig's cron know: a time that the clock skips in spring does
not come, and one that it repeats in autumn comes twice. Looks at one local day after the other, forwards or backwards,
so that a schedule long missed costs as little as one just due. Called by `runs`.

Upstream: github.com/robfig/cron (SpecSchedule.Next, ConstantDelaySchedule.Next).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo

from controlplane.machinery.cron import Schedule

HORIZON_DAYS = 5 * 366  # a schedule not due within five years (30 February) never is: upstream's limit
_DAY = timedelta(days=1)


def upcoming(schedule: Schedule, after: float, zone: tzinfo) -> Iterator[float]:
    """The times the schedule is due later than `after`, in order."""
    if schedule.every:
        when = math.floor(after) + schedule.every
        while True:
            yield when
            when += schedule.every
    day = datetime.fromtimestamp(after, zone).date()
    for _ in range(HORIZON_DAYS):
        if _matches(schedule, day):
            yield from (when for when in _times(schedule, day, zone) if when > after)
        day += _DAY


def upcoming_first(schedule: Schedule, after: float, zone: tzinfo) -> float | None:
    return next(upcoming(schedule, after, zone), None)


def latest(schedule: Schedule, after: float, until: float, zone: tzinfo) -> float | None:
    """The last time in (after, until] that the schedule was due."""
    if schedule.every:
        start = math.floor(after)
        count = math.floor((until - start) / schedule.every)
        return start + count * schedule.every if count >= 1 else None
    day, first = datetime.fromtimestamp(until, zone).date(), datetime.fromtimestamp(after, zone).date()
    for _ in range(HORIZON_DAYS):
        if day < first:
            return None
        if _matches(schedule, day):
            due = [when for when in _times(schedule, day, zone) if after < when <= until]
            if due:
                return due[-1]
        day -= _DAY
    return None


def missed(schedule: Schedule, after: float, until: float, zone: tzinfo, limit: int) -> int:
    """How many times in (after, until] the schedule was due, at most `limit`."""
    count = 0
    for when in upcoming(schedule, after, zone):
        if when > until or count == limit:
            break
        count += 1
    return count


def _matches(schedule: Schedule, day: date) -> bool:
    if day.month not in schedule.months:
        return False
    by_date, by_weekday = day.day in schedule.days, day.isoweekday() % 7 in schedule.weekdays
    return by_date or by_weekday if schedule.either_day else by_date and by_weekday


def _times(schedule: Schedule, day: date, zone: tzinfo) -> list[float]:
    """The instants of a local day, in order."""
    midnight, tomorrow = (datetime(d.year, d.month, d.day, tzinfo=zone) for d in (day, day + _DAY))
    wall = [(hour, minute) for hour in sorted(schedule.hours) for minute in sorted(schedule.minutes)]
    if midnight.utcoffset() == tomorrow.utcoffset():
        start = midnight.timestamp()
        return [start + hour * 3600 + minute * 60 for hour, minute in wall]
    found = set()
    for hour, minute in wall:
        for fold in (0, 1):
            local = datetime(day.year, day.month, day.day, hour, minute, tzinfo=zone, fold=fold)
            instant = local.astimezone(UTC)
            if instant.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):  # else the clock skips it
                found.add(instant.timestamp())
    return sorted(found)
