"""What a Pod asks for and may use, as quantities that keep the form they were written in. Pure.

Owns the sum over a Pod's containers (its worst moment, with init containers and sidecars), pod-level resources and
overhead, and the quality of service. Called where people read the sums: limits and quotas. (The scheduler counts in
plain integers.)

Upstream: k8s.io/component-helpers/resource (PodRequests, PodLimits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.machinery import quantity
from controlplane.machinery.quantity import Quantity

COMPUTE = ("cpu", "memory")  # what makes the quality of service, and may be resized

Amounts = dict[str, Quantity]


def parsed(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list, parsed."""
    return {name: quantity.parse(value) for name, value in (quantities or {}).items()}


def texts(amounts: Mapping[str, Quantity]) -> dict[str, str]:
    """The same as a resource list."""
    return {name: str(amount) for name, amount in amounts.items()}


def added(left: Mapping[str, Quantity], right: Mapping[str, Quantity]) -> Amounts:
    """The sum by name."""
    total = dict(left)
    for name, value in right.items():
        total[name] = total[name] + value if name in total else value
    return total


def highest(left: Mapping[str, Quantity], right: Mapping[str, Quantity]) -> Amounts:
    """The greater of both by name."""
    total = dict(left)
    for name, value in right.items():
        if name not in total or value > total[name]:
            total[name] = value
    return total


def without(total: Mapping[str, Quantity], part: Mapping[str, Quantity]) -> Amounts:
    """The difference by name, nothing below zero: what is told of a Pod has its overhead in it."""
    return {name: max(value - part[name], Quantity(0)) if name in part else value for name, value in total.items()}


def of_container(container: Mapping[str, Any], field: str) -> Amounts:
    """`requests` or `limits` of one container."""
    return parsed((container.get("resources") or {}).get(field))


def supported(name: str) -> bool:
    """Whether a resource may be stated for a Pod as a whole."""
    return name in COMPUTE or name.startswith("hugepages-")


def whole(spec: Mapping[str, Any]) -> bool:
    """Whether a Pod's spec states resources for the Pod as a whole."""
    stated = spec.get("resources") or {}
    return any(supported(name) for field in ("requests", "limits") for name in stated.get(field) or {})


def aggregate(spec: Mapping[str, Any], field: str, status: Mapping[str, Any] | None = None) -> Amounts:
    """The sum over a Pod's containers. With its status, what a resize has not given back yet counts too."""
    told = {s.get("name"): s for key in ("containerStatuses", "initContainerStatuses")
            for s in (status or {}).get(key) or ()}
    total: Amounts = {}
    for container in spec.get("containers") or []:
        total = added(total, _held(container, told.get(container.get("name")), status, field))
    sidecars: Amounts = {}
    worst: Amounts = {}
    for container in spec.get("initContainers") or []:
        if container.get("restartPolicy") == "Always":
            asked = _held(container, told.get(container.get("name")), status, field)
            sidecars = added(sidecars, asked)
            total = added(total, asked)
            worst = highest(worst, sidecars)
        else:
            worst = highest(worst, added(sidecars, of_container(container, field)))
    return highest(total, worst)


def _held(holder: Mapping[str, Any], told: Mapping[str, Any] | None, status: Mapping[str, Any] | None,
          field: str) -> Amounts:
    """What a container, or a Pod as a whole, holds: the most of what it asks for, has and was granted."""
    if not told or told.get("resources") is None:
        return of_container(holder, field)
    found = of_container(told, field)
    if field == "requests":
        found = highest(found, parsed(told.get("allocatedResources")))
    found = without(found, parsed(holder.get("overhead")))
    refused = any(c.get("type") == "PodResizePending" and c.get("reason") == "Infeasible"
                  for c in (status or {}).get("conditions") or ())
    return found if refused else highest(found, of_container(holder, field))


def _of(pod: Mapping[str, Any], field: str, resizing: bool) -> Amounts:
    spec, status = pod.get("spec") or {}, (pod.get("status") or {}) if resizing else None
    total = aggregate(spec, field, status)
    stated = (spec.get("resources") or {}).get(field) or {}
    held = _held(spec, status, status, field)
    total.update({name: held[name] for name in stated if supported(name) and name in held})
    return total


def requests(pod: Mapping[str, Any], resizing: bool = False) -> Amounts:
    """What the Pod takes from a node at its worst moment; `resizing`: with what it has not given back yet."""
    return added(_of(pod, "requests", resizing), parsed((pod.get("spec") or {}).get("overhead")))


def limits(pod: Mapping[str, Any], resizing: bool = False) -> Amounts:
    """What the Pod may use at most; only of resources that are limited at all, which overhead alone is not."""
    total = _of(pod, "limits", resizing)
    for name, value in parsed((pod.get("spec") or {}).get("overhead")).items():
        if total.get(name):
            total[name] = total[name] + value
    return total


def qos_class(spec: Mapping[str, Any]) -> str:
    """Guaranteed when every container's cpu and memory requests equal its limits, BestEffort when none asks; or the
    pod's as a whole, where it states them."""
    guaranteed, asked = True, False
    holders = (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))
    for each in (spec,) if whole(spec) else holders:
        resources = each.get("resources") or {}
        limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
        for name in COMPUTE:
            request, limit = _amount(requests.get(name)), _amount(limits.get(name))
            asked = asked or bool(request) or bool(limit)
            if not limit or (request if name in requests else limit) != limit:
                guaranteed = False
    if not asked:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _amount(text: Any) -> int:
    try:
        return quantity.parse(text).nano if text is not None else 0
    except ValueError:
        return 0
