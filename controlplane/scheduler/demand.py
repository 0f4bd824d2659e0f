"""What a pod asks of a node: resources, host ports, claims. Pure.

`requests` is the truth that must fit; `cpu_floor` and `memory_floor` count containers that name none as a little, so
that scoring does not pile all such pods on one node. Called by `fit` and `snapshot`.

Upstream: k8s.io/component-helpers/resource (PodRequests) and the scheduler's NodeInfo.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from controlplane.machinery import podfacts, quantity

# The units everything is counted in: milli-cores for cpu, whole units (bytes, counts) for the rest.
Amounts = dict[str, int]

# A container that asks for nothing counts as this much when nodes are compared: upstream's schedutil defaults.
LEAST_CPU, LEAST_MEMORY = 100, 200 * 1024 * 1024
_LEAST = {"cpu": LEAST_CPU, "memory": LEAST_MEMORY}
_REMEMBERED = 4096  # quantities kept as integers: the same few stand in every pod
POD_LEVEL = ("cpu", "memory", "hugepages-")  # what pod-level resources may name


@lru_cache(_REMEMBERED)
def _amount(name: str, text: str) -> int:
    parsed = quantity.parse(text)
    return parsed.milli() if name == "cpu" else parsed.value()


def amounts(quantities: Mapping[str, Any] | None) -> Amounts:
    """A resource list as integers: cpu in milli-cores, all else in units (bytes, counts)."""
    return {name: _amount(name, str(text)) for name, text in quantities.items()} if quantities else {}


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
    cpu_floor: int = LEAST_CPU
    memory_floor: int = LEAST_MEMORY
    claims: tuple[str, ...] = ()  # `namespace/name` of the volume claims it uses


@dataclass(frozen=True, slots=True)
class _Held:
    """What the node gives the containers, by name, and the pod as a whole, where it has told. While one shrinks, room
    is free only when it has been given back; one that cannot grow on this node (`stuck`) goes on with what it has."""

    containers: Mapping[str, Amounts]
    whole: Amounts
    stuck: bool

    def requests(self, container: Mapping[str, Any]) -> Amounts:
        resources = container.get("resources") or {}
        return self.beside(amounts({**(resources.get("limits") or {}), **(resources.get("requests") or {})}),
                           self.containers.get(container.get("name", "")))

    def beside(self, asked: Amounts, has: Amounts | None) -> Amounts:
        """The more of what is asked for and held."""
        if has and self.stuck:
            return dict(has)
        _raise_to(asked, has or {})
        return asked


def _held(pod: Mapping[str, Any]) -> _Held:
    status = pod.get("status") or {}
    overhead = amounts((pod.get("spec") or {}).get("overhead"))  # which is in what is told of the whole pod
    whole = {name: max(0, value - overhead.get(name, 0)) for name, value in _told(status).items()}
    return _Held({one["name"]: _told(one) for field in ("containerStatuses", "initContainerStatuses")
                  for one in status.get(field) or ()}, whole,
                 any((one.get("type"), one.get("reason")) == ("PodResizePending", "Infeasible")
                     for one in status.get("conditions") or ()))


def _told(status: Mapping[str, Any]) -> Amounts:
    """The more of what was granted and what is still in use."""
    found = amounts(status.get("allocatedResources"))
    _raise_to(found, amounts((status.get("resources") or {}).get("requests")))
    return found


def _ports(containers: Iterable[Mapping[str, Any]]) -> tuple[HostPort, ...]:
    return tuple(HostPort(p.get("hostIP") or "0.0.0.0", p.get("protocol") or "TCP", p["hostPort"])
                 for c in containers for p in c.get("ports") or () if p.get("hostPort"))


def _worst(spec: Mapping[str, Any], held: _Held, least: Mapping[str, int]) -> Amounts:
    """The most the pod needs at once: its containers together, or an init container beside the sidecars that started
    before it; plus overhead. Pod-level requests, where given, stand in for the sum. `least`: what an absent request
    counts as."""
    total: Amounts = {}
    for container in spec.get("containers") or ():
        add(total, {**least, **held.requests(container)})
    sidecars: Amounts = {}
    worst: Amounts = {}
    for container in spec.get("initContainers") or ():
        asked = {**least, **held.requests(container)}
        if container.get("restartPolicy") == "Always":
            add(sidecars, asked)
            add(total, asked)
            _raise_to(worst, sidecars)
        else:
            moment = dict(sidecars)
            add(moment, asked)
            _raise_to(worst, moment)
    _raise_to(total, worst)
    whole = (spec.get("resources") or {}).get("requests") or {}
    asked = {name: value for name, value in amounts(whole).items() if name.startswith(POD_LEVEL)}
    total.update(held.beside(asked, {name: held.whole[name] for name in asked if name in held.whole}))
    add(total, amounts(spec.get("overhead")))
    return total


def of(pod: Mapping[str, Any]) -> Demand:
    """What the pod needs at its worst moment."""
    spec = pod.get("spec") or {}
    held = _held(pod)
    total = _worst(spec, held, {})
    floors = total if "cpu" in total and "memory" in total and len(spec.get("containers") or ()) == 1 \
        else _worst(spec, held, _LEAST)
    containers = [*(spec.get("containers") or ()),
                  *(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always")]
    return Demand({name: value for name, value in total.items() if value}, _ports(containers),
                  floors.get("cpu", 0), floors.get("memory", 0),
                  tuple(f"{pod['metadata'].get('namespace', '')}/{name}" for name, _ in podfacts.claim_names(pod)))
