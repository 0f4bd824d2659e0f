"""The schedules of CronJobs: five fields, or one of the named ones.

Owns the grammar and its error texts. Pure: a schedule is a set of allowed values per field; when it is next due is for
its caller to compute. `?` means `*`; days of month and week are alternatives when both are restricted.

Upstream: github.com/robfig/cron's standard parser, as batch/v1 uses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))
_MONTHS = {m: i for i, m in enumerate(("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov",
                                       "dec"), 1)}
_DAYS = {d: i for i, d in enumerate(("sun", "mon", "tue", "wed", "thu", "fri", "sat"))}
_NAMES = {"month": _MONTHS, "weekday": _DAYS}
_DESCRIPTORS = {"@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0",
                "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@hourly": "0 * * * *"}
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]*\.?[0-9]+)(ms|us|µs|ns|h|m|s)")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Allowed values per field; `every` is a fixed delay in seconds instead, 0 for none.

    `either_day` is True when day of month and weekday are both restricted: one of them suffices."""

    minutes: frozenset[int] = frozenset()
    hours: frozenset[int] = frozenset()
    days: frozenset[int] = frozenset()
    months: frozenset[int] = frozenset()
    weekdays: frozenset[int] = frozenset()  # 0 is Sunday
    either_day: bool = False
    every: float = 0.0


def parse(text: str) -> Schedule:
    """The schedule of a text. Raises ValueError with upstream's wording."""
    if not text:
        raise ValueError("empty spec string")
    if text.startswith("@"):
        if text.startswith("@every "):
            return Schedule(every=max(1.0, float(int(_duration(text)))))
        if text not in _DESCRIPTORS:
            raise ValueError(f"unrecognized descriptor: {text}")
        text = _DESCRIPTORS[text]
    words = text.split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"expected exactly {len(_FIELDS)} fields, found {len(words)}: [{' '.join(words)}]")
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS))
    restricted = [not any(part.removesuffix("/1") in ("*", "?") for part in words[at].split(",")) for at in (2, 4)]
    return Schedule(minutes, hours, days, months, weekdays, either_day=all(restricted))


def _duration(text: str) -> float:
    rest = text.removeprefix("@every ")
    parts = _PART.findall(rest)
    if not parts or "".join(n + u for n, u in parts) != rest:
        raise ValueError(f'failed to parse duration {text}: time: invalid duration "{rest}"')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _field(word: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in word.split(","):
        if part:
            found |= _range(part, name, low, high)
    return frozenset(found)


def _range(part: str, name: str, low: int, high: int) -> set[int]:
    span, *steps = part.split("/")
    ends = span.split("-")
    if len(steps) > 1:
        raise ValueError(f"too many slashes: {part}")
    if len(ends) > 2:
        raise ValueError(f"too many hyphens: {part}")
    if ends[0] in ("*", "?"):
        first, last = low, high
    else:
        first = _number(ends[0], name)
        last = _number(ends[1], name) if len(ends) == 2 else (high if steps else first)
    step = _int(steps[0]) if steps else 1
    if first < low:
        raise ValueError(f"beginning of range ({first}) below minimum ({low}): {part}")
    if last > high:
        raise ValueError(f"end of range ({last}) above maximum ({high}): {part}")
    if first > last:
        raise ValueError(f"beginning of range ({first}) beyond end of range ({last}): {part}")
    if step == 0:
        raise ValueError(f"step of range should be a positive number: {part}")
    return set(range(first, last + 1, step))


def _number(text: str, name: str) -> int:
    known = _NAMES.get(name, {}).get(text.lower())
    return known if known is not None else _int(text)


def _int(text: str) -> int:
    if not re.fullmatch("[+-]?[0-9]+", text):
        raise ValueError(f'failed to parse int from {text}: strconv.Atoi: parsing "{text}": invalid syntax')
    if int(text) < 0:
        raise ValueError(f"negative number ({int(text)}) not allowed: {text}")
    return int(text)
