"""Requests and limits turned into kernel numbers: QoS class, cgroup settings of containers and pods, OOM scores.

Pure arithmetic with upstream's constants. Values are quantities as text; `machinery.quantity` parses them. Called by
`specs`, `cgroups`, `status` and `env`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agent.kubelet.model import LinuxResources
from agent.kubelet.restarts import is_sidecar
from controlplane.machinery import quantity
from controlplane.machinery.podresources import qos_class

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


def pod_resources(pod: dict[str, Any]) -> LinuxResources:
    """The pod's cgroup: what the pod says as a whole, else sums over its containers; a limit only when every
    container has one."""
    own = pod["spec"].get("resources")
    main = pod["spec"].get("containers", ())
    init = pod["spec"].get("initContainers") or ()
    sidecars = [c for c in init if c.get("restartPolicy") == "Always"]
    together = [*main, *sidecars]

    def total(kind: str, name: str, *, all_must: bool) -> int:
        said = milli(own, kind, name)
        if said is not None:
            return said
        fallback = "limits" if kind == "requests" else kind
        found = []
        for c in [*together, *init]:
            value = milli(c.get("resources"), kind, name)
            found.append(milli(c.get("resources"), fallback, name) if value is None else value)
        if all_must and not all(found):
            return 0
        running = sum(v or 0 for v in found[:len(together)])
        return max([running, *(v or 0 for v in found[len(together):])])

    overhead = pod["spec"].get("overhead") or {}
    cpu = quantity.parse(str(overhead.get("cpu", "0"))).milli()
    memory = quantity.parse(str(overhead.get("memory", "0"))).value()
    holders = [(holder.get("resources") or {}).get("limits") or {} for holder in (pod["spec"], *main, *init)]
    huge = {name for limits in holders for name in limits if name.startswith(HUGE)}
    pages = {"limits": {name: str(total("limits", name, all_must=False) // 1000) for name in huge}}
    cpu_limit = total("limits", "cpu", all_must=True)
    memory_limit = -(-total("limits", "memory", all_must=True) // 1000)
    return LinuxResources(
        cpu_shares=shares(total("requests", "cpu", all_must=False) + cpu),
        cpu_quota=quota(cpu_limit + cpu if cpu_limit else 0), cpu_period=PERIOD,
        memory_limit=memory_limit + memory if memory_limit else 0, hugepages=hugepages((pages,)))
