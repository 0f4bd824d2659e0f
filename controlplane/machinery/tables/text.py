"""The small texts cells are made of: durations as people say them, joined lists, selectors, containers.

Pure and total: a missing field becomes upstream's `<none>`, `<unset>` or `<unknown>`, never an exception. Called by
the printers of this package, and `human_duration` by whoever tells people a duration.

Upstream: k8s.io/apimachinery/pkg/util/duration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import ApiError
from controlplane.machinery.selectors import from_label_selector

Object = dict[str, Any]
NONE, UNSET, UNKNOWN = "<none>", "<unset>", "<unknown>"
SHOWN = 3  # entries of a long list before "+ n more..."


@dataclass(frozen=True, slots=True)
class Printer:
    """`columns` as `Name, Count:integer, Node*` (`*`: wide only); `cells` gives one row's cells in that order."""

    columns: str
    cells: Callable[[Object, float], list[Any]]
    conditions: Callable[[Object], list[Object]] | None = None


def human_duration(seconds: float) -> str:
    """A duration with at most two units and no false precision: `90s`, `5m30s`, `150m`, `3h5m`, `30h`, `3d2h`, `2y10d`.
    Times a little in the future count as now; others are `<invalid>`."""
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 120:
        return f"{max(whole, 0)}s"
    minutes = whole // 60
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    hours = minutes // 60
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    days = hours // 24
    if hours < 192:
        return _two(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return _two(days // 365, "y", days % 365, "d") if days < 2920 else f"{days // 365}y"


def _two(large: int, unit: str, small: int, smaller: str) -> str:
    return f"{large}{unit}{small}{smaller}" if small else f"{large}{unit}"


def seconds_of(stamp: Any) -> float | None:
    """Wall seconds of a metav1.Time, None when there is none."""
    try:
        return parse_rfc3339(stamp) if stamp else None
    except (ValueError, TypeError):
        return None


def age(stamp: Any, now: float) -> str:
    """How long ago a timestamp was."""
    then = seconds_of(stamp)
    return UNKNOWN if then is None else human_duration(now - then)


def name(obj: Object) -> str:
    return (obj.get("metadata") or {}).get("name") or ""


def created(obj: Object, now: float) -> str:
    return age((obj.get("metadata") or {}).get("creationTimestamp"), now)


def spec(obj: Object) -> Object:
    return obj.get("spec") or {}


def status(obj: Object) -> Object:
    return obj.get("status") or {}


def pairs(labels: Object | None) -> str:
    """`a=b,c=d` in order of keys."""
    return ",".join(f"{k}={v}" for k, v in sorted((labels or {}).items())) or NONE


def selector(found: Object | None) -> str:
    """A metav1.LabelSelector as kubectl writes it."""
    if not found:
        return NONE
    try:
        return str(from_label_selector(found)) or NONE
    except (ApiError, ValueError):
        return "<error>"


def containers(template: Object | None) -> tuple[str, str]:
    """Names and images of a pod template's containers."""
    found = ((template or {}).get("spec") or {}).get("containers") or ()
    return ",".join(c.get("name", "") for c in found), ",".join(c.get("image", "") for c in found)


def few(entries: Iterable[str], nothing: str) -> str:
    """The first few entries and how many more there are."""
    found = list(entries)
    text = ",".join(found[:SHOWN])
    if len(found) > SHOWN:
        text += f" + {len(found) - SHOWN} more..."
    return text or nothing


def truth(value: Any) -> str:
    return "True" if value else "False"
