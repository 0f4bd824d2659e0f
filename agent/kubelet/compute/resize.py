"""Resources changed while the pod runs: which wish is granted, and what it takes to carry it out.

Pure. Resources come in three: wished (the spec), allocated (what this node has granted) and actual (what its process
runs with); those of a container by its name, those of the pod as a whole by "". A container without a limit of its own
has the pod's, which stands in its entry as `inherited`. A wish the node can never meet is Infeasible, one it cannot
meet now Deferred; both leave everything as it is. Called by `resizer`.

Upstream: pkg/kubelet/allocation, pkg/kubelet/kuberuntime (computePodResizeAction).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agent.kubelet import admit
from agent.kubelet.compute import resources
from agent.kubelet.model import LinuxResources
from agent.kubelet.restarts import is_sidecar, lasting
from controlplane.machinery import podresources

RESIZABLE = ("cpu", "memory")
KINDS = ("requests", "limits", "inherited")
WHOLE = ""  # the pod's own entry
PENDING, IN_PROGRESS = "PodResizePending", "PodResizeInProgress"
Entry = dict[str, Any]  # `resources`
Table = Mapping[str, Entry]


@dataclass(frozen=True, slots=True)
class Change:
    """A running container, or the pod as a whole, whose resources are to become others; `restart` when its policy wants
    a new process."""

    name: str
    restart: bool


def entry(own: Entry | None, whole: Entry | None) -> Entry:
    """What a container has, by its own words and the pod's."""
    limits, most = (own or {}).get("limits") or {}, (whole or {}).get("limits") or {}
    inherited = {name: most[name] for name in RESIZABLE if name in most and name not in limits}
    return {**(own or {}), "inherited": inherited} if inherited else own or {}


def wished(pod: dict[str, Any]) -> dict[str, Entry]:
    """What the spec asks for, for the pod as a whole and every container that may run for as long as it does."""
    spec, whole = pod["spec"], pod["spec"].get("resources")
    running = [*spec["containers"], *(c for c in spec.get("initContainers") or () if is_sidecar(c))]
    return {**({WHOLE: whole} if podresources.whole(spec) else {}),
            **{c["name"]: entry(c.get("resources"), whole) for c in running}}


def same(a: Entry, b: Entry, names: Iterable[str] = RESIZABLE) -> bool:
    return all(resources.milli(a, kind, name) == resources.milli(b, kind, name) for kind in KINDS for name in names)


def with_resources(pod: dict[str, Any], table: Table) -> dict[str, Any]:
    """The pod as if its spec asked for `table`; the pod itself when it does."""
    if all(table.get(name, has) == has for name, has in wished(pod).items()):
        return pod
    spec = dict(pod["spec"])
    if WHOLE in table and podresources.whole(spec):
        spec["resources"] = table[WHOLE]
    for group in ("containers", "initContainers"):
        if spec.get(group):
            spec[group] = [c | {"resources": told(table[c["name"]])} if c["name"] in table else c for c in spec[group]]
    return pod | {"spec": spec}


def recalled(pod: dict[str, Any]) -> Entry:
    """What the pod as a whole has, by its status, which counts its overhead and what only containers ask for in."""
    spec, has = pod["spec"], pod["status"]["resources"]
    overhead = podresources.parsed(spec.get("overhead"))
    return {kind: {name: str(amount) for name, amount in podresources.without(
        podresources.of_container(pod["status"], kind), overhead).items() if name in said}
        for kind, said in spec["resources"].items() if kind in has}


def told(has: Entry) -> Entry:
    """An entry as specs and statuses have it."""
    return {kind: value for kind, value in has.items() if kind != "inherited"}


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
    """What is to be done to the containers called `running`, and to the pod's own group."""
    policies = {c["name"]: {p["resourceName"]: p.get("restartPolicy") for p in c.get("resizePolicy") or ()}
                for c in lasting(pod)}
    made = []
    for name in (WHOLE, *running):
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
    return replace(b, cpu_shares=max(a.cpu_shares, b.cpu_shares), cpu_quota=larger(a.cpu_quota, b.cpu_quota),
                   memory_limit=larger(a.memory_limit, b.memory_limit))
