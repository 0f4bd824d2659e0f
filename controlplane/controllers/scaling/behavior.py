"""How fast a HorizontalPodAutoscaler may follow its metrics.

Pure. Owns stabilization windows, rate policies and the bounds, and the reasons users read in the conditions AbleToScale
and ScalingLimited. Remembers nothing: the caller hands in recent recommendations and changes. Called by `autoscaler`.

Upstream: pkg/controller/podautoscaler/horizontal.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.scaling.proposals import TOLERANCE, Tolerance
from controlplane.machinery import objects, quantity

DOWN_WINDOW_SECONDS = 300  # without one of its own: upstream's default
LONGEST_SECONDS = 3600  # of a window or period: the API's limit, so older memories may go
_UP = {"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
    {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]}
_DOWN = {"stabilizationWindowSeconds": DOWN_WINDOW_SECONDS, "selectPolicy": "Max", "policies": [
    {"type": "Percent", "value": 100, "periodSeconds": 15}]}

Obj = dict[str, Any]
Condition = tuple[str, str, str, str]  # type, status, reason, message
Change = tuple[float, int]  # when (monotonic seconds), by how many replicas or to how many


@dataclass(slots=True)
class Memory:
    """What came before, the oldest first, bounded by LONGEST_SECONDS: recommendations, and changes up and down."""

    recommendations: list[Change] = field(default_factory=list)
    ups: list[Change] = field(default_factory=list)
    downs: list[Change] = field(default_factory=list)

    def forget(self, now: float) -> None:
        for kept in (self.recommendations, self.ups, self.downs):
            kept[:] = [one for one in kept if one[0] > now - LONGEST_SECONDS]

    def changed(self, before: int, after: int, now: float) -> None:
        if after > before:
            self.ups.append((now, after - before))
        elif after < before:
            self.downs.append((now, before - after))


def rules(autoscaler: Obj, way: str) -> Obj:
    """The rules of `scaleUp` or `scaleDown`, what they do not say filled in."""
    default = _UP if way == "scaleUp" else _DOWN
    given = objects.get(autoscaler, f"spec.behavior.{way}") or {}
    return {**default, **{key: value for key, value in given.items() if value is not None}}


def tolerance(autoscaler: Obj) -> Tolerance:
    def of(way: str) -> float:
        text = rules(autoscaler, way).get("tolerance")
        return TOLERANCE if text is None else quantity.parse(str(text)).milli() / 1000
    return Tolerance(of("scaleDown"), of("scaleUp"))


def normalize(autoscaler: Obj, current: int, desired: int, memory: Memory, now: float) -> tuple[int, list[Condition]]:
    """(replicas to have now, what to say of it). Enters the recommendation in the memory."""
    memory.forget(now)
    stable = _stabilized(autoscaler, current, desired, memory, now)
    memory.recommendations.append((now, desired))
    if stable == desired:
        said = ("AbleToScale", "True", "ReadyForNewScale", "recommended size matches current size")
    elif desired >= current:
        said = ("AbleToScale", "True", "ScaleUpStabilized",
                "recent recommendations were lower than current one, applying the lowest recent recommendation")
    else:
        said = ("AbleToScale", "True", "ScaleDownStabilized",
                "recent recommendations were higher than current one, applying the highest recent recommendation")
    allowed, reason, message = _bounded(autoscaler, current, stable, memory, now)
    limited = "True" if allowed != stable else "False"
    return allowed, [said, ("ScalingLimited", limited, reason, message)]


def _stabilized(autoscaler: Obj, current: int, desired: int, memory: Memory, now: float) -> int:
    def since(way: str) -> list[int]:
        window = rules(autoscaler, way)["stabilizationWindowSeconds"]
        return [count for at, count in memory.recommendations if at > now - window]
    lowest, highest = min([desired, *since("scaleUp")]), max([desired, *since("scaleDown")])
    return min(max(current, lowest), highest) if objects.get(autoscaler, "spec.behavior") is not None else highest


def bounds(autoscaler: Obj) -> tuple[int, int]:
    return objects.get(autoscaler, "spec.minReplicas", 1), objects.get(autoscaler, "spec.maxReplicas", 1)


def _bounded(autoscaler: Obj, current: int, desired: int, memory: Memory, now: float) -> tuple[int, str, str]:
    least, most = bounds(autoscaler)
    if desired > current:
        limit = max(current, _limit(rules(autoscaler, "scaleUp"), current, memory, now, up=True))
        if objects.get(autoscaler, "spec.behavior") is None:  # the rule of the time before there were policies
            limit = max(2 * current, 4)
        if desired > min(most, limit):
            return (limit, "ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"
                    ) if limit < most else (most, "TooManyReplicas",
                                            "the desired replica count is more than the maximum replica count")
    elif desired < current:
        limit = min(current, _limit(rules(autoscaler, "scaleDown"), current, memory, now, up=False))
        if desired < max(least, limit):
            return (limit, "ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale "
                    "rate") if limit > least else (least, "TooFewReplicas", "the desired replica count is less than "
                                                   "the minimum replica count")
    if desired > most:
        return most, "TooManyReplicas", "the desired replica count is more than the maximum replica count"
    if desired < least:
        return least, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
    return desired, "DesiredWithinRange", "the desired count is within the acceptable range"


def _limit(one: Obj, current: int, memory: Memory, now: float, up: bool) -> int:
    """How far the policies let the replicas go now."""
    if one["selectPolicy"] == "Disabled":
        return current
    widest = one["selectPolicy"] != "Min"  # the policy of the largest change decides, or that of the smallest
    choose: Callable[[Iterable[int]], int] = max if widest == up else min
    return choose(_proposed(policy, current, memory, now, up) for policy in one["policies"])


def _proposed(policy: Obj, current: int, memory: Memory, now: float, up: bool) -> int:
    """Where one policy ends: counted from the replicas there were when its period began."""
    def recent(changes: list[Change]) -> int:
        return sum(count for at, count in changes if at > now - policy["periodSeconds"])
    began = current - recent(memory.ups) + recent(memory.downs)
    value = policy["value"]
    if policy["type"] == "Pods":
        return began + value if up else began - value
    return math.ceil(began * (100 + value) / 100) if up else int(began * (100 - value) / 100)
