"""Resources changed while the pod runs: which wish is granted, and what it takes to carry it out.

Pure. Resources of a container come in three: wished (the spec), allocated (what this node has granted) and actual
(what its process runs with). A wish the node can never meet is Infeasible, one it cannot meet now Deferred; both leave
everything as it is. Called by `resizer`.

Upstream: pkg/kubelet/allocation, pkg/kubelet/kuberuntime (computePodResizeAction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.kubelet import admit
from agent.kubelet.compute import resources
from agent.kubelet.model import LinuxResources
from agent.kubelet.restarts import is_sidecar

RESIZABLE = ("cpu", "memory")
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
Table = Mapping[str, dict[str, Any]]  # container name -> its `resources`


@dataclass(frozen=True, slots=True)
class Change:
    """A running container whose resources are to become others; `restart` when its policy wants a new process."""

    name: str
    restart: bool


def wished(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The resources the spec asks for, of every container that may run for as long as the pod does."""
    spec = pod["spec"]
    running = [*spec["containers"], *(c for c in spec.get("initContainers") or () if is_sidecar(c))]
    return {c["name"]: c.get("resources") or {} for c in running}


def same(a: dict[str, Any], b: dict[str, Any], names: Iterable[str] = RESIZABLE) -> bool:
    return all(resources.milli(a, kind, name) == resources.milli(b, kind, name)
               for kind in ("requests", "limits") for name in names)


def with_resources(pod: dict[str, Any], table: Table) -> dict[str, Any]:
    """The pod as if its spec asked for `table`; the pod itself when it does."""
    if all(table.get(name, has) == has for name, has in wished(pod).items()):
        return pod
    spec = dict(pod["spec"])
    for group in ("containers", "initContainers"):
        if spec.get(group):
            spec[group] = [c | {"resources": table[c["name"]]} if c["name"] in table else c for c in spec[group]]
    return pod | {"spec": spec}


def verdict(pod: dict[str, Any], others: Iterable[dict[str, Any]], place: admit.Place) -> tuple[str, str]:
    """("", "") when the wish may be granted, else the reason and message of PodResizePending."""
    if not place.allocatable:
        return "", ""
    have, wants = admit.capacity(place), admit.amounts(pod)
    for name in RESIZABLE:
        if wants.get(name, 0) > have.get(name, 0):
            return "Infeasible", f"Node didn't have enough capacity: {name}, requested: {wants[name]}, " \
                                 f"capacity: {have.get(name, 0)}"
    used = dict.fromkeys(RESIZABLE, 0)
    for other in others:
        asked = admit.amounts(other)
        for name in RESIZABLE:
            used[name] += asked.get(name, 0)
    for name in RESIZABLE:
        if wants.get(name, 0) and used[name] + wants[name] > have.get(name, 0):
            return "Deferred", f"Node didn't have enough resource: {name}, requested: {wants[name]}, " \
                               f"used: {used[name]}, capacity: {have.get(name, 0)}"
    return "", ""


def changes(pod: dict[str, Any], allocated: Table, actual: Table, running: Iterable[str]) -> list[Change]:
    """What is to be done to the containers called `running`."""
    spec = pod["spec"]
    policies = {c["name"]: {p["resourceName"]: p.get("restartPolicy") for p in c.get("resizePolicy") or ()}
                for c in [*spec["containers"], *(spec.get("initContainers") or ())]}
    made = []
    for name in running:
        if name not in actual or name not in allocated or same(allocated[name], actual[name]):
            continue
        restart = any(policies.get(name, {}).get(r) == "RestartContainer"
                      and not same(allocated[name], actual[name], (r,)) for r in RESIZABLE)
        made.append(Change(name, restart))
    return made


def wider(a: LinuxResources, b: LinuxResources) -> LinuxResources:
    """The pod's limits while its containers change from `a` to `b`: never too small for either; 0 is no limit."""
    def larger(x: int, y: int) -> int:
        return max(x, y) if x and y else 0
    return LinuxResources(max(a.cpu_shares, b.cpu_shares), larger(a.cpu_quota, b.cpu_quota), b.cpu_period,
                          larger(a.memory_limit, b.memory_limit))
