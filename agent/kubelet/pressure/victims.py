"""Which pod has to go when the node is short of something, and what it is told.

Pure. Owns upstream's order – who uses more than it asked for, then the lower priority, then the larger excess – and
its messages; also the limits of local storage that single pods and containers overstep. Called by `eviction`.

Upstream: pkg/kubelet/eviction/{helpers,eviction_manager}.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet import admit
from agent.kubelet.compute import resources
from agent.kubelet.pressure.thresholds import Reading, Threshold
from agent.kubelet.restarts import lasting
from controlplane.machinery import podresources, quantity

REASON = "Evicted"
STORAGE = "ephemeral-storage"
MARK = ("DisruptionTarget", "True", "TerminationByKubelet")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Use:
    """What a pod uses now. Bytes, and processes; containers by name, emptyDirs by volume."""

    memory: int = 0
    disk: int = 0
    pids: int = 0
    inodes: int = 0
    containers: Mapping[str, int] = field(default_factory=dict)  # writable layer and logs
    memories: Mapping[str, int] = field(default_factory=dict)
    logs: Mapping[str, int] = field(default_factory=dict)  # of `containers` what are logs
    volumes: Mapping[str, int] = field(default_factory=dict)

    def of(self, resource: str) -> int:
        return {"memory": self.memory, "pids": self.pids, "inodes": self.inodes}.get(resource, self.disk)


def rank(pods: Iterable[tuple[Object, Use]], resource: str) -> list[tuple[Object, Use]]:
    """The pods in the order they have to go."""
    def place(entry: tuple[Object, Use]) -> tuple[bool, int, int]:
        pod, use = entry
        used = use.of(resource)
        asked = admit.amounts(pod).get(resource, 0)  # nobody can ask for inodes or processes
        return (used <= asked and resource != "pids", pod["spec"].get("priority") or 0, asked - used)

    return sorted((e for e in pods if not admit.critical(e[0])), key=place)


def binary(amount: int) -> str:
    """Bytes as a quantity prints them."""
    for suffix, unit in (("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)):
        if amount and amount % unit == 0:
            return f"{amount // unit}{suffix}"
    return str(amount)


def _kibi(amount: int) -> str:
    return f"{amount >> 10}Ki"


def message(pod: Object, use: Use, threshold: Threshold, reading: Reading) -> str:
    """Why the pod is evicted, for its status."""
    resource = threshold.resource
    wanted = threshold.value.of(reading.capacity)
    text = (f"The node was low on resource: {resource}. Threshold quantity: {_shown(wanted, resource)}, available: "
            f"{_shown(reading.available, resource)}. ")
    if resource not in ("memory", STORAGE):
        return text
    for name, has, asked in _offenders(pod, use, resource):
        text += f"Container {name} was using {_kibi(has)}, request is {binary(asked)}, has larger consumption of " \
                f"{resource}. "
    return text


def _offenders(pod: Object, use: Use, resource: str) -> Iterator[tuple[str, int, int]]:
    """The containers that use more than they asked for: by name, how much they have, and how much they asked for."""
    used = use.memories if resource == "memory" else use.containers
    for container in pod["spec"]["containers"]:
        asked = resources.whole(container.get("resources"), "requests", resource) or 0
        if (has := used.get(container["name"], 0)) > asked:
            yield container["name"], has, asked


def offence(pod: Object, use: Use, resource: str) -> dict[str, str]:
    """The same for programs: annotations of the event."""
    found = list(_offenders(pod, use, resource)) if resource in ("memory", STORAGE) else []
    return {"offending_containers": ",".join(name for name, _, _ in found),
            "offending_containers_usage": ",".join(binary(has) for _, has, _ in found), "starved_resource": resource}


def _shown(amount: int, resource: str) -> str:
    return binary(amount) if resource not in ("memory", STORAGE) or amount % 1024 else _kibi(amount)


def limited(pod: Object) -> bool:
    """Whether the pod's local storage has limits it may go for, so that it is worth measuring."""
    return not admit.critical(pod) and bool(_sizes(pod) or podresources.limits(pod).get(STORAGE))


def _sizes(pod: Object) -> dict[str, str]:
    found = {v["name"]: (v.get("emptyDir") or {}).get("sizeLimit") for v in pod["spec"].get("volumes") or ()}
    return {name: str(size) for name, size in found.items() if size}


def overstepped(pod: Object, use: Use) -> str:
    """The limit of local storage the pod is beyond, as a message; "" when it is within all."""
    for name, size in _sizes(pod).items():
        if use.volumes.get(name, 0) > quantity.parse(size).value() > 0:
            return f'Usage of EmptyDir volume "{name}" exceeds the limit "{size}". '
    total = podresources.limits(pod).get(STORAGE)
    if total and use.disk > total.value():
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
    for container in lasting(pod):
        limit = podresources.of_container(container, "limits").get(STORAGE)
        if limit and use.containers.get(container["name"], 0) > limit.value():
            return f'Container {container["name"]} exceeded its local ephemeral storage limit "{limit}". '
    return ""
