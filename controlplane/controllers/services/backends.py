"""Which pods stand behind a Service, on which ports, and in what state.

Pure. Owns the meaning of a Service's selector, target ports and readiness for both the Endpoints and the EndpointSlice
controller. Called by those two.

Upstream: k8s.io/endpointslice (utils.go) and pkg/controller/endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects, podfacts

Obj = dict[str, Any]
Port = tuple[str, str, int | None, str]  # name, protocol, number, appProtocol


@dataclass(frozen=True, slots=True)
class Backend:
    """One pod behind a Service: its state and where its ports are."""

    pod: Obj
    ready: bool
    serving: bool
    terminating: bool
    ports: tuple[Port, ...]

    def addresses(self, family: str) -> list[str]:
        """The pod's address of `IPv4` or `IPv6`, in a list of at most one."""
        status = self.pod["status"]
        known = [entry["ip"] for entry in status.get("podIPs") or []] or [status["podIP"]]
        return [ip for ip in known if (":" in ip) == (family == "IPv6")][:1]


def headless(service: Obj) -> bool:
    return objects.get(service, "spec.clusterIP") == "None"


def selects(service: Obj) -> bool:
    """Whether its endpoints are ours to keep: it has a selector and is no alias."""
    return bool(objects.get(service, "spec.selector")) and objects.get(service, "spec.type") != "ExternalName"


def backends(service: Obj, pods: Iterable[Obj]) -> list[Backend]:
    """The pods that match and have an address, finished ones excepted."""
    wanted = objects.get(service, "spec.selector", {}).items()
    tolerate = bool(objects.get(service, "spec.publishNotReadyAddresses"))
    found = []
    for pod in pods:
        status = pod.get("status") or {}
        if not wanted <= objects.labels(pod).items() or not status.get("podIP") or \
                podfacts.finished(pod):
            continue
        serving = objects.holds(pod, "Ready")
        terminating = objects.deleting(pod)
        found.append(Backend(pod, tolerate or (serving and not terminating), serving, terminating,
                             tuple(ports(service, pod))))
    return found


def ports(service: Obj, pod: Obj) -> Iterable[Port]:
    """The Service's ports as the pod has them; one whose named target the pod lacks is left out."""
    for port in objects.get(service, "spec.ports") or ():
        protocol = port.get("protocol") or "TCP"
        target = port.get("targetPort") or port["port"]
        number = target if isinstance(target, int) else _named(pod, target, protocol)
        if number is not None:
            yield port.get("name") or "", protocol, number, port.get("appProtocol") or ""


def _named(pod: Obj, name: str, protocol: str) -> int | None:
    spec = pod.get("spec") or {}
    sidecars = [c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"]
    for container in [*(spec.get("containers") or ()), *sidecars]:
        for port in container.get("ports") or ():
            if port.get("name") == name and (port.get("protocol") or "TCP") == protocol:
                return port["containerPort"]
    return None


def hostname(service: Obj, pod: Obj) -> str:
    """The pod's own name in the Service's domain, "" when it has none."""
    spec = pod.get("spec") or {}
    return spec.get("hostname") or "" if spec.get("subdomain") == objects.name(service) else ""


def target(pod: Obj) -> Obj:
    """The reference from an endpoint to its pod."""
    return {"kind": "Pod", "namespace": objects.namespace(pod), "name": objects.name(pod), "uid": objects.uid(pod)}


def matters(old: Obj, new: Obj) -> bool:
    """Whether the change of a pod can change any endpoint: most status writes cannot."""
    def shown(pod: Obj) -> tuple[Any, ...]:
        status, spec = pod.get("status") or {}, pod.get("spec") or {}
        return (objects.labels(pod), status.get("podIPs"), status.get("podIP"), status.get("phase"),
                objects.holds(pod, "Ready"), objects.deleting(pod), objects.uid(pod),
                spec.get("nodeName"), spec.get("hostname"), spec.get("subdomain"))
    return shown(old) != shown(new)
