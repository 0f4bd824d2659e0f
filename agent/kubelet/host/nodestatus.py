"""The Node object of this host: what it is, what it has and how it is, as dicts.

Pure: facts come in, `node` and `status` dicts go out, with upstream's labels, reasons and messages. Called by `node`,
which gathers the facts and talks to the API.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.host.registration import Registration
from agent.kubelet.model import Features
from agent.kubelet.pressure.keeping import Keeping
from agent.kubelet.pressure.victims import binary

IMAGES_TOLD = 50  # upstream's bound of status.images
KUBELET_VERSION = "v1.36.0+pelamis"
# What pods may rely on here that not every kubelet can; upstream's names.
DECLARED = ("InPlacePodLevelResourcesVerticalScaling", "RestartAllContainersOnContainerExits")
PRESSURES = {  # (condition, whether it holds) -> reason, message
    ("MemoryPressure", True): ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
    ("MemoryPressure", False): ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", True): ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    ("DiskPressure", False): ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", True): ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    ("PIDPressure", False): ("KubeletHasSufficientPID", "kubelet has sufficient PID available")}


@dataclass(frozen=True, slots=True)
class Host:
    """What does not change while the machine is up."""

    name: str
    ips: tuple[str, ...]
    cpus: int
    memory: int  # bytes
    disk: int  # bytes of the kubelet's file system
    kernel: str = ""
    os_image: str = ""
    architecture: str = "amd64"
    machine_id: str = ""
    system_uuid: str = ""
    boot_id: str = ""
    runtime_version: str = ""  # containerd://1.6.20
    port: int = 10250
    hugepages: tuple[tuple[str, int], ...] = (("hugepages-1Gi", 0), ("hugepages-2Mi", 0))  # bytes by resource
    keeping: Keeping = field(default_factory=Keeping)
    features: Features = field(default_factory=Features)
    registration: Registration = field(default_factory=Registration)
    cloud: str | None = None  # a cloud answers for this machine: its provider ID, "" where only the cloud knows it


@dataclass(frozen=True, slots=True)
class Health:
    """What does. Problems are "" when there is none."""

    runtime: str = ""  # as the condition tells it
    network: str = ""
    pressures: frozenset[str] = frozenset()  # conditions that hold
    volumes: tuple[str, ...] = ()  # of storage drivers, mounted here
    closing: bool = False  # the host is about to go down
    unreachable: str = ""
    images: tuple[tuple[tuple[str, ...], int], ...] = ()  # names, bytes
    devices: tuple[tuple[str, int, int], ...] = ()  # of device plugins: resource, how many, how many healthy


def labels(host: Host) -> dict[str, str]:
    return {"beta.kubernetes.io/arch": host.architecture, "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": host.architecture, "kubernetes.io/hostname": host.name, "kubernetes.io/os": "linux"}


def node(host: Host, now: str, health: Health) -> dict[str, Any]:
    """The object to register. In a cloud no pod comes until the cloud has told what this machine is."""
    taints, provider = list(host.registration.taints), {}
    notes = {"volumes.kubernetes.io/controller-managed-attach-detach": "true"}
    if host.cloud is not None:
        taints.append({"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true",
                       "effect": "NoSchedule"})
        provider = {"providerID": host.cloud} if host.cloud else {}
        notes["alpha.kubernetes.io/provided-node-ip"] = ",".join(host.ips)
    return {"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": host.name, "labels": {**host.registration.labels, **labels(host)},
                         "annotations": notes},
            "spec": {**({"taints": taints} if taints else {}), **provider}, "status": status(host, health, now, {})}


def status(host: Host, health: Health, now: str, old: dict[str, Any]) -> dict[str, Any]:
    """The whole status; `old` is what the API has, for transition times. `now` is a metav1.Time."""
    has = capacity(host) | {name: str(count) for name, count, _ in health.devices}
    free = allocatable(host) | {name: str(healthy) for name, _, healthy in health.devices}
    # Extended resources that somebody else advertises here.
    foreign = {name: amount for name, amount in (old.get("capacity") or {}).items() if name not in has}
    addresses = [*({"type": "InternalIP", "address": ip} for ip in host.ips),
                 {"type": "Hostname", "address": host.name}]
    if host.cloud is not None and old.get("addresses"):
        addresses = old["addresses"]  # the cloud's to tell
    told: dict[str, Any] = {"volumesInUse": sorted(health.volumes)} if health.volumes or old.get("volumesInUse") else {}
    if host.features.handlers:
        told["runtimeHandlers"] = [_handler(name, host.features) for name in sorted(host.features.handlers)]
        told["features"] = {"supplementalGroupsPolicy": host.features.strict_groups}
    return {
        **told, "capacity": {**foreign, **has}, "allocatable": {**foreign, **free},
        "conditions": conditions(health, now, old),
        "addresses": addresses, "declaredFeatures": list(DECLARED),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": host.port}},
        "nodeInfo": {"machineID": host.machine_id, "systemUUID": host.system_uuid, "bootID": host.boot_id,
                     "kernelVersion": host.kernel, "osImage": host.os_image,
                     "containerRuntimeVersion": host.runtime_version, "kubeletVersion": KUBELET_VERSION,
                     "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": host.architecture},
        "images": [{"names": list(names), "sizeBytes": size} for names, size in
                   sorted(health.images, key=lambda i: (-i[1], i[0]))[:IMAGES_TOLD]],
    }


def _handler(name: str, features: Features) -> dict[str, Any]:
    return {"name": name, "features": {"recursiveReadOnlyMounts": name in features.recursive,
                                       "userNamespaces": name in features.user_namespaces}}


def capacity(host: Host) -> dict[str, str]:
    return {"cpu": str(host.cpus), "ephemeral-storage": f"{host.disk // 1024}Ki", "memory": f"{host.memory // 1024}Ki",
            "pods": str(host.keeping.max_pods), **{name: binary(size) for name, size in host.hugepages}}


def allocatable(host: Host) -> dict[str, str]:
    """What pods may ask for: less what is reserved, and what evictions keep free."""
    keeping = host.keeping

    def left(name: str, total: int, signal: str = "") -> int:
        return max(0, total - keeping.reserved(name) // 1000 - (keeping.kept(signal, total) if signal else 0))

    cpu = max(0, host.cpus * 1000 - keeping.reserved("cpu"))
    huge = sum(size for _, size in host.hugepages)
    return {"cpu": str(cpu // 1000) if cpu % 1000 == 0 else f"{cpu}m",
            "ephemeral-storage": str(left("ephemeral-storage", host.disk, "nodefs.available")),
            "memory": f"{max(0, left('memory', host.memory, 'memory.available') - huge) // 1024}Ki",
            "pods": str(keeping.max_pods), **{name: binary(left(name, size)) for name, size in host.hugepages}}


def conditions(health: Health, now: str, old: dict[str, Any]) -> list[dict[str, Any]]:
    """MemoryPressure, DiskPressure, PIDPressure and Ready, after those that others keep."""
    problems = []
    if health.runtime:
        problems.append(health.runtime)
    elif health.network:
        problems.append(f"container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady "
                        f"message:{health.network}")
    if health.unreachable:
        problems.append(health.unreachable)
    if health.closing:
        problems.append("node is shutting down")
    ready = ("False", "KubeletNotReady", ", ".join(problems)) if problems else \
        ("True", "KubeletReady", "kubelet is posting ready status")
    made = []
    before = {c["type"]: c for c in old.get("conditions") or ()}
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure"):
        bad = kind in health.pressures
        made.append(_condition(kind, "True" if bad else "False", *PRESSURES[kind, bad], now, before.get(kind)))
    made.append(_condition("Ready", *ready, now, before.get("Ready")))
    ours = {c["type"] for c in made}
    return [*(c for kind, c in before.items() if kind not in ours), *made]


def _condition(kind: str, value: str, reason: str, message: str, now: str,
               old: dict[str, Any] | None) -> dict[str, Any]:
    same = old is not None and old.get("status") == value
    return {"type": kind, "status": value, "lastHeartbeatTime": now,
            "lastTransitionTime": old["lastTransitionTime"] if same and old else now,
            "reason": reason, "message": message}


def differs(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether anything but heartbeat times has changed."""
    def bare(value: dict[str, Any]) -> dict[str, Any]:
        return value | {"conditions": [{k: v for k, v in c.items() if k != "lastHeartbeatTime"}
                                       for c in value.get("conditions") or ()]}
    return bare({k: old.get(k) for k in new}) != bare(new)


def patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """A strategic merge patch of the status: conditions and addresses merge by type, so addresses are replaced."""
    changes = {k: v for k, v in new.items() if old.get(k) != v}
    if "addresses" in changes and old.get("addresses"):
        changes["addresses"] = [{"$patch": "replace"}, *new["addresses"]]
    if "conditions" in changes:
        changes["$setElementOrder/conditions"] = [{"type": c["type"]} for c in new["conditions"]]
    return {"status": changes}
