"""What a Pod asks for and may use, as quantities that keep the form they were written in. Pure.

Owns the sum over a Pod's containers (its worst moment, with init containers and sidecars), pod-level resources and
overhead. Called where people read the sums: limits and quotas. (The scheduler counts in plain integers.)

Upstream: k8s.io/component-helpers/resource (PodRequests, PodLimits).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controlplane.machinery import quantity
from controlplane.machinery.quantity import Quantity

Amounts = dict[str, Quantity]


def parsed(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list, parsed."""
    return {name: quantity.parse(value) for name, value in (quantities or {}).items()}


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


def of_container(container: Mapping[str, Any], field: str) -> Amounts:
    """`requests` or `limits` of one container."""
    return parsed((container.get("resources") or {}).get(field))


def _of(pod: Mapping[str, Any], field: str) -> Amounts:
    spec = pod.get("spec") or {}
    total: Amounts = {}
    for container in spec.get("containers") or []:
        total = added(total, of_container(container, field))
    sidecars: Amounts = {}
    worst: Amounts = {}
    for container in spec.get("initContainers") or []:
        asked = of_container(container, field)
        if container.get("restartPolicy") == "Always":
            sidecars = added(sidecars, asked)
            total = added(total, asked)
            worst = highest(worst, sidecars)
        else:
            worst = highest(worst, added(sidecars, asked))
    total = highest(total, worst)
    total.update(parsed((spec.get("resources") or {}).get(field)))
    return total


def requests(pod: Mapping[str, Any]) -> Amounts:
    """What the Pod takes from a node at its worst moment."""
    return added(_of(pod, "requests"), parsed((pod.get("spec") or {}).get("overhead")))


def limits(pod: Mapping[str, Any]) -> Amounts:
    """What the Pod may use at most; only of resources that are limited at all, which overhead alone is not."""
    total = _of(pod, "limits")
    for name, value in parsed((pod.get("spec") or {}).get("overhead")).items():
        if name in total:
            total[name] = total[name] + value
    return total
