"""Warnings: what a writer should know although the server accepts it. Pure; `strategy` calls it on every write.

Upstream: the warnings.go of k8s.io/kubernetes/pkg/api/{pod,service} and meta.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.resources import Resource

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
    return found


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
