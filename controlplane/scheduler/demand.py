"""What a pod asks of a node: resources, host ports. Pure.

Upstream: k8s.io/component-helpers/resource (PodRequests) and the scheduler's NodeInfo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from controlplane.machinery import quantity

# The units everything is counted in: milli-cores for cpu, whole units (bytes, counts) for the rest.
Amounts = dict[str, int]


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list as integers: cpu in milli-cores, all else in units (bytes, counts)."""
    found: Amounts = {}
    for name, text in (quantities or {}).items():
        parsed = quantity.parse(str(text))
        found[name] = parsed.milli() if name == "cpu" else parsed.value()
    return found


def add(total: Amounts, more: Mapping[str, int]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0) + value


def _raise_to(total: Amounts, floor: Mapping[str, int]) -> None:
    for name, value in floor.items():
        total[name] = max(total.get(name, 0), value)


@dataclass(frozen=True, slots=True)
class HostPort:
    ip: str  # "" and 0.0.0.0 are the same: every address
    protocol: str
    port: int

    def clashes(self, other: HostPort) -> bool:
        return (self.port, self.protocol) == (other.port, other.protocol) and (
            self.ip == other.ip or "0.0.0.0" in (self.ip, other.ip))


@dataclass(frozen=True, slots=True)
class Demand:
    """`requests` without the `pods` count of one, which every pod takes."""

    requests: Amounts = field(default_factory=dict)
    ports: tuple[HostPort, ...] = ()


def _requests(container: Mapping[str, Any]) -> Amounts:
    resources = container.get("resources") or {}
    return amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})})


def _ports(containers: Iterable[Mapping[str, Any]]) -> tuple[HostPort, ...]:
    return tuple(HostPort(p.get("hostIP") or "0.0.0.0", p.get("protocol") or "TCP", p["hostPort"])
                 for c in containers for p in c.get("ports") or [] if p.get("hostPort"))


def of(pod: Mapping[str, Any]) -> Demand:
    """What the pod needs at its worst moment: its containers together, or an init container beside the sidecars that
    started before it; plus the pod's overhead. Pod-level requests, where given, stand in for the sum."""
    spec = pod.get("spec") or {}
    containers = spec.get("containers") or []
    total: Amounts = {}
    for container in containers:
        add(total, _requests(container))
    sidecars: Amounts = {}
    worst: Amounts = {}
    inits = spec.get("initContainers") or []
    for container in inits:
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            add(sidecars, asked)
            add(total, asked)
            _raise_to(worst, sidecars)
        else:
            moment = dict(sidecars)
            add(moment, asked)
            _raise_to(worst, moment)
    _raise_to(total, worst)
    total.update(amounts((spec.get("resources") or {}).get("requests")))
    add(total, amounts(spec.get("overhead")))
    restartable = [c for c in inits if c.get("restartPolicy") == "Always"]
    return Demand({name: value for name, value in total.items() if value}, _ports([*containers, *restartable]))
