"""Warnings: what a writer should know although the server accepts it. Pure; `strategy` calls it on every write.

Upstream: the warnings.go of k8s.io/kubernetes/pkg/api/{pod,service} and meta.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from controlplane.machinery.resources import Resource
from controlplane.machinery.validate.services import HINTS, MODE

Object = dict[str, Any]
_DEPRECATED = {("", "Endpoints"): "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
               ("", "ComponentStatus"): "v1 ComponentStatus is deprecated in v1.19+"}
_LABELS = {"beta.kubernetes.io/arch": ("1.14", "kubernetes.io/arch"),
           "beta.kubernetes.io/os": ("1.14", "kubernetes.io/os"),
           "failure-domain.beta.kubernetes.io/region": ("1.17", "topology.kubernetes.io/region"),
           "failure-domain.beta.kubernetes.io/zone": ("1.17", "topology.kubernetes.io/zone"),
           "beta.kubernetes.io/instance-type": ("1.17", "node.kubernetes.io/instance-type")}
_TEMPLATED = frozenset(("Deployment", "ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job",
                        "PodTemplate"))


def deprecation(resource: Resource) -> str:
    """The warning every request to this resource carries, or ""."""
    return "" if resource.custom else _DEPRECATED.get((resource.group, resource.kind), "")


def warnings_of(resource: Resource, obj: Object, old: Object | None) -> list[str]:
    """Warnings about what this write says; an update repeats none for a spec it leaves alone."""
    found = _metadata(obj.get("metadata") or {})
    spec = obj.get("spec") or {}
    if old is not None and spec == (old.get("spec") or {}):
        return found
    if resource.kind == "Pod":
        found += _pod_spec(spec, "spec")
    elif resource.kind in _TEMPLATED:
        found += _pod_spec((spec.get("template") or {}).get("spec") or {}, "spec.template.spec")
    own = _OWN.get((resource.group, resource.kind))
    return found + own(obj, old) if own is not None else found


def _cron_job(obj: Object, old: Object | None) -> list[str]:
    spec, name = obj.get("spec") or {}, obj["metadata"].get("name") or ""
    found = []
    if old is None and "." in name:
        found.append(f'metadata.name: "{name}" is used in Pod names and hostnames, which can result in surprising '
                     "behavior; a DNS label is recommended")
    if "TZ" in (spec.get("schedule") or ""):
        found.append("cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
    template = ((spec.get("jobTemplate") or {}).get("spec") or {}).get("template") or {}
    return found + _pod_spec(template.get("spec") or {}, "spec.jobTemplate.spec.template.spec")


def _job(obj: Object, old: Object | None) -> list[str]:
    spec, found = obj.get("spec") or {}, []
    completions, parallel = spec.get("completions") or 0, spec.get("parallelism") or 0
    if spec.get("completionMode") == "Indexed" and completions > MANY and parallel > MANY_AT_ONCE:
        found.append("In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than "
                     "10^4, Kubernetes might not be able to track completedIndexes when a big number of indexes fail")
    return found


def _ingress(obj: Object, old: Object | None) -> list[str]:
    """The annotation that the class field replaced."""
    if old is not None or INGRESS_CLASS not in (obj["metadata"].get("annotations") or {}):
        return []
    return [f'annotation "{INGRESS_CLASS}" is deprecated, please use \'spec.ingressClassName\' instead']


def _claim(obj: Object, old: Object | None) -> list[str]:
    asked = (((obj.get("spec") or {}).get("resources") or {}).get("requests") or {}).get("storage")
    found = []
    if isinstance(asked, str) and asked.endswith("m"):
        found.append(f'spec.resources.requests[storage]: fractional byte value "{asked}" is invalid, must be an '
                     "integer")
    if BETA_CLASS in (obj["metadata"].get("annotations") or {}):
        found.append(f'metadata.annotations[{BETA_CLASS}]: deprecated since v1.8; use "storageClassName" attribute '
                     "instead")
    return found


def _volume(obj: Object, old: Object | None) -> list[str]:
    spec = obj.get("spec") or {}
    if spec.get("persistentVolumeReclaimPolicy") != "Recycle":
        return []
    return ["spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended "
            "approach is to use dynamic provisioning."]


def _service(obj: Object, old: Object | None) -> list[str]:
    spec, kind = obj.get("spec") or {}, (obj.get("spec") or {}).get("type")
    headless, outside = spec.get("clusterIP") == "None", spec.get("externalIPs") or []
    found = [f"annotation {HINTS} is deprecated, please use {MODE} instead"] if HINTS in (
        obj["metadata"].get("annotations") or {}) else []
    if kind != "ExternalName" and not headless:
        for index, text in enumerate(spec.get("clusterIPs") or ()):
            found += _address(text, f"spec.clusterIPs[{index}]")
    if headless and kind == "ClusterIP":
        found += [f"spec.{name} is ignored for headless services" for name, said in (
            ("loadBalancerIP", spec.get("loadBalancerIP")), ("externalIPs", outside),
            ("SessionAffinity", spec.get("sessionAffinity") == "ClientIP")) if said]
    for index, text in enumerate(outside):
        found += _address(text, f"spec.externalIPs[{index}]")
    if outside and not (headless and kind == "ClusterIP") and kind != "ExternalName":
        found.append("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
    found += _address(spec.get("loadBalancerIP") or "", "spec.loadBalancerIP")
    for index, text in enumerate(spec.get("loadBalancerSourceRanges") or ()):
        found += _range(text, f"spec.loadBalancerSourceRanges[{index}]")
    if kind == "ExternalName" and outside:
        found.append('spec.externalIPs is ignored when spec.type is "ExternalName"')
    if kind != "ExternalName" and spec.get("externalName"):
        found.append('spec.externalName is ignored when spec.type is not "ExternalName"')
    if spec.get("trafficDistribution") == "PreferClose":
        found.append('spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"')
    return found


def _address(text: str, path: str) -> list[str]:
    """An address of IPv6 that is written otherwise than everybody else writes it is found by no comparison of texts."""
    try:
        one = ipaddress.ip_address(text)
    except ValueError:
        return []
    if one.version == 4 or one.ipv4_mapped or str(one) == text:
        return []
    return [f'{path}: IPv6 address "{text}" should be in RFC 5952 canonical format ("{one}")']


def _range(text: str, path: str) -> list[str]:
    """A range that is written as an address in it means one or the other."""
    try:
        one = ipaddress.ip_interface(text)
    except ValueError:
        return []
    if one.ip == one.network.network_address:
        return []
    return [f'{path}: CIDR value "{text}" is ambiguous in this context (should be "{one.network}" or '
            f'"{one.ip}/{one.max_prefixlen}"?)']


MANY, MANY_AT_ONCE = 100_000, 10_000
INGRESS_CLASS, BETA_CLASS = "kubernetes.io/ingress.class", "volume.beta.kubernetes.io/storage-class"
_OWN: dict[tuple[str, str], Callable[[Object, Object | None], list[str]]] = {
    ("batch", "CronJob"): _cron_job, ("batch", "Job"): _job, ("networking.k8s.io", "Ingress"): _ingress,
    ("", "Service"): _service, ("", "PersistentVolumeClaim"): _claim, ("", "PersistentVolume"): _volume}


def _metadata(meta: Object) -> list[str]:
    return [f'metadata.finalizers: "{name}": prefer a domain-qualified finalizer name including a path (/) to avoid '
            "accidental conflicts with other finalizer writers"
            for name in meta.get("finalizers") or ()
            if "/" not in name and name not in ("orphan", "foregroundDeletion", "kubernetes")]


def _pod_spec(spec: Object, path: str) -> list[str]:
    found = [f'{path}.nodeSelector[{key}]: deprecated since v{since}; use "{now}" instead'
             for key, (since, now) in _LABELS.items() if key in (spec.get("nodeSelector") or {})]
    grace = spec.get("terminationGracePeriodSeconds")
    if isinstance(grace, int) and grace < 0:
        found.append(f"{path}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be "
                     "treated as 1")
    found += [f'{path}.imagePullSecrets[{index}]: invalid empty name ""'
              for index, reference in enumerate(spec.get("imagePullSecrets") or ()) if not reference.get("name")]
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or ()):
            found += _container(container, f"{path}.{kind}[{index}]")
    return found


def _container(container: Object, path: str) -> list[str]:
    found, seen = [], set()
    for index, env in enumerate(container.get("env") or ()):
        if env.get("name") in seen:
            found.append(f'{path}.env[{index}]: hides previous definition of "{env.get("name")}", which may be dropped '
                         "when using apply")
        seen.add(env.get("name"))
    ports: dict[tuple[Any, Any, Any], str] = {}
    for index, port in enumerate(container.get("ports") or ()):
        key = (port.get("containerPort"), port.get("protocol"), port.get("hostPort"))
        where = f"{path}.ports[{index}]"
        if key in ports:
            found.append(f"{where}: duplicate port definition with {ports[key]}")
        ports.setdefault(key, where)
    return found
