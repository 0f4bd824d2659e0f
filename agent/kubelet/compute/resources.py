"""Requests and limits turned into kernel numbers: QoS class, cgroup settings of containers and pods, OOM scores.

Pure arithmetic with upstream's constants. Values are quantities as text; `machinery.quantity` parses them. Called by
`specs`, `cgroups`, `status` and `env`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.kubelet.model import LinuxResources
from agent.kubelet.restarts import is_sidecar, lasting
from controlplane.machinery import podresources, quantity
from controlplane.machinery.podresources import Amounts, qos_class
from controlplane.machinery.quantity import Quantity

PERIOD = 100_000  # microseconds; the kernel's default CFS period
MIN_QUOTA = 1000  # microseconds; the kernel refuses less
MIN_SHARES, MAX_SHARES = 2, 262_144  # the kernel's bounds
HUGE = "hugepages-"
GUARANTEED_SCORE, BEST_EFFORT_SCORE = -997, 1000


def milli(resources: dict[str, Any] | None, kind: str, name: str) -> int | None:
    """`resources[kind][name]` in thousandths, or None when it is not set."""
    text = ((resources or {}).get(kind) or {}).get(name)
    return None if text is None else quantity.parse(str(text)).milli()


def whole(resources: dict[str, Any] | None, kind: str, name: str) -> int | None:
    text = ((resources or {}).get(kind) or {}).get(name)
    return None if text is None else quantity.parse(str(text)).value()


def shares(millicores: int) -> int:
    return min(max(millicores * 1024 // 1000, MIN_SHARES), MAX_SHARES)


def quota(millicores: int) -> int:
    """CFS quota in microseconds per PERIOD; 0 when unlimited."""
    return max(millicores * PERIOD // 1000, MIN_QUOTA) if millicores else 0


def oom_score(pod: dict[str, Any], container: dict[str, Any], node_memory: int) -> int:
    """oom_score_adj; `node_memory` in bytes."""
    if pod["spec"].get("priorityClassName") == "system-node-critical":
        return GUARANTEED_SCORE
    kind = qos_class(pod["spec"])
    if kind == "Guaranteed":
        return GUARANTEED_SCORE
    if kind == "BestEffort":
        return BEST_EFFORT_SCORE
    request = _memory(container)
    if container in (pod["spec"].get("initContainers") or ()) and is_sidecar(container):
        request = max(request, min(map(_memory, pod["spec"]["containers"])))  # it must not go before those it serves
    request += _unassigned(pod)
    score = 1000 - 1000 * request // max(node_memory, 1)
    return min(max(score, 1000 + GUARANTEED_SCORE), BEST_EFFORT_SCORE - 1)


def _memory(container: dict[str, Any]) -> int:
    return whole(container.get("resources"), "requests", "memory") or 0


def _unassigned(pod: dict[str, Any]) -> int:
    """Bytes the pod as a whole asks for beyond its containers, shared out among them all."""
    asked = whole(pod["spec"].get("resources"), "requests", "memory") or 0
    everyone = [*pod["spec"].get("containers", ()), *(pod["spec"].get("initContainers") or ())]
    rest = asked - sum(map(_memory, everyone))
    return max(0, rest) // len(everyone) if everyone else 0


def linux_resources(pod: dict[str, Any], container: dict[str, Any], node_memory: int,
                    pages: Iterable[str] = ()) -> LinuxResources:
    """The container's own cgroup; `pages` are the sizes of huge pages there are, as the kernel names them."""
    resources = container.get("resources")
    # Under a limit of the whole pod a container without its own may use all of it, and its cgroup says so.
    own = pod["spec"].get("resources")
    limit = milli(resources, "limits", "cpu") or milli(own, "limits", "cpu") or 0
    request = milli(resources, "requests", "cpu")
    memory = whole(resources, "limits", "memory") or whole(own, "limits", "memory")
    return LinuxResources(
        cpu_shares=shares(limit if request is None else request),
        cpu_quota=quota(limit), cpu_period=PERIOD,
        memory_limit=memory or 0,
        oom_score_adj=oom_score(pod, container, node_memory), hugepages=hugepages((own, resources), pages))


def page(size: int) -> str:
    """How the kernel calls huge pages of so many bytes: `2MB`."""
    unit, by = next((u, b) for u, b in (("GB", 1 << 30), ("MB", 1 << 20), ("KB", 1 << 10)) if size >= b)
    return f"{size // by}{unit}"


def hugepages(told: Iterable[dict[str, Any] | None], pages: Iterable[str] = ()) -> tuple[tuple[str, int], ...]:
    """The limits of huge pages, the last word counts; of the other sizes in `pages` none may be used."""
    found = dict.fromkeys(pages, 0)
    for resources in told:
        found |= {page(quantity.parse(name.removeprefix(HUGE)).value()): whole(resources, "limits", name) or 0
                  for name in (resources or {}).get("limits") or () if name.startswith(HUGE)}
    return tuple(sorted(found.items()))


def overhead(pod: dict[str, Any]) -> LinuxResources:
    """What the pod takes beside its containers, by its RuntimeClass."""
    said = {"limits": pod["spec"].get("overhead") or {}}
    cpu = milli(said, "limits", "cpu") or 0
    return LinuxResources(cpu_shares=shares(cpu) if cpu else 0, cpu_quota=quota(cpu), cpu_period=PERIOD if cpu else 0,
                          memory_limit=whole(said, "limits", "memory") or 0)


def held(pod: dict[str, Any]) -> dict[str, Amounts]:
    """`requests` and `limits` of the pod's own group, overhead and all: what the pod says as a whole, else its worst
    moment; a limit only when every container has one."""
    stated = podresources.of_container(pod["spec"], "limits")
    each = [podresources.of_container(container, "limits") for container in lasting(pod)]
    return {"requests": podresources.requests(pod),
            "limits": {name: amount for name, amount in podresources.limits(pod).items()
                       if name in stated or name.startswith(HUGE) or all(limits.get(name) for limits in each)}}


def pod_resources(pod: dict[str, Any]) -> LinuxResources:
    """The pod's cgroup."""
    asked, limits = (held(pod)[kind] for kind in ("requests", "limits"))

    def of(amounts: Amounts, name: str) -> Quantity:
        return amounts.get(name, Quantity(0))
    return LinuxResources(
        cpu_shares=shares(of(asked, "cpu").milli()), cpu_quota=quota(of(limits, "cpu").milli()), cpu_period=PERIOD,
        memory_limit=of(limits, "memory").value(),
        hugepages=hugepages([{"limits": {name: str(amount) for name, amount in limits.items()}}]))
