"""APIServices as facts: which ones a server has for its own groups, in which order groups come, what they may say.

Owns the priorities of the built-in groups and the rules of an APIService's fields. Pure. Called by the API server's
`aggregation`, by validation and by clients that must know other servers' kinds.

Upstream: k8s.io/kube-aggregator/pkg/apis/apiregistration, pkg/controlplane/apiserver/aggregator.go.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import Cause, invalid, not_supported, required

Object = dict[str, Any]
GROUP = "apiregistration.k8s.io"
MANAGED = "kube-aggregator.kubernetes.io/automanaged"
ON_START, ALWAYS = "onstart", "true"  # values of that label: of built-in groups, of custom ones
AVAILABLE = "Available"
PORT = 443
CUSTOM_PRIORITY = (1000, 100)  # of a group of custom kinds, and of each of its versions
FIRST = (20000, 15)  # the group of APIServices themselves, and what has no place of its own
# Groups in the order discovery has them: kubectl finds an ambiguous short name in the first. Equal ones by name.
_GROUPS = {"": 18000, "apps": 17800, "events.k8s.io": 17750, "authentication.k8s.io": 17700,
           "authorization.k8s.io": 17600, "autoscaling": 17500, "batch": 17400, "certificates.k8s.io": 17300,
           "networking.k8s.io": 17200, "policy": 17100, "rbac.authorization.k8s.io": 17000, "storage.k8s.io": 16800,
           "admissionregistration.k8s.io": 16700, "apiextensions.k8s.io": 16700, "scheduling.k8s.io": 16600,
           "coordination.k8s.io": 16500, "node.k8s.io": 16300, "discovery.k8s.io": 16200, "resource.k8s.io": 16200,
           "flowcontrol.apiserver.k8s.io": 16100, "metrics.k8s.io": 100}
_VERSIONS = {("", "v1"): 1, ("autoscaling", "v2"): 30, ("flowcontrol.apiserver.k8s.io", "v1"): 21,
             ("authentication.k8s.io", "v1beta1"): 9, ("metrics.k8s.io", "v1beta1"): 100}


def priority(group: str, version: str) -> tuple[int, int]:
    """Of a built-in group and version: the higher comes first."""
    return _GROUPS.get(group, FIRST[0]), _VERSIONS.get((group, version), FIRST[1])


def name_of(group: str, version: str) -> str:
    return f"{version}.{group}"


def local(group: str, version: str, custom: bool) -> Object:
    """The APIService of a group-version this server serves itself, without identity and status."""
    first, second = CUSTOM_PRIORITY if custom else priority(group, version)
    spec = {"version": version, "groupPriorityMinimum": first, "versionPriority": second}
    if group:
        spec["group"] = group
    return {"apiVersion": f"{GROUP}/v1", "kind": "APIService",
            "metadata": {"name": name_of(group, version), "labels": {MANAGED: ALWAYS if custom else ON_START}},
            "spec": spec}


def remote(obj: Object) -> bool:
    """Whether another server is asked for this group-version."""
    return bool((obj.get("spec") or {}).get("service")) and bool(obj["spec"].get("group"))


def available(obj: Object) -> bool:
    return any(c.get("type") == AVAILABLE and c.get("status") == "True"
               for c in (obj.get("status") or {}).get("conditions") or ())


def default(obj: Object) -> None:
    """In place."""
    spec = obj["spec"] = obj.get("spec") or {}
    service = spec.get("service")
    if service is not None and service.get("port") is None:
        service["port"] = PORT
    obj["status"] = obj.get("status") or {}


def validate(obj: Object) -> list[Cause]:
    """What is wrong with an APIService beside its metadata."""
    spec = obj.get("spec") or {}
    group, version = spec.get("group") or "", spec.get("version") or ""
    wanted = f"{version}.{group}"
    found = []
    if obj["metadata"].get("name") != wanted:
        found.append(invalid("metadata.name", obj["metadata"].get("name"),
                             f'must be `spec.version+"."+spec.group`: "{wanted}"'))
    if group:
        found += [invalid("spec.group", group, m) for m in names.dns_subdomain(group)]
    elif version != "v1":
        found.append(required("spec.group", "only v1 may have an empty group and it better be legacy kube"))
    found += [invalid("spec.version", version, m) for m in names.dns_1035_label(version)]
    for field, limit in (("groupPriorityMinimum", 20000), ("versionPriority", 1000)):
        value = spec.get(field) or 0
        if not 0 < value <= limit:
            found.append(invalid(f"spec.{field}", value, f"must be positive and less than {limit}"))
    return found + _trust(spec) + _conditions(obj)


def _trust(spec: Object) -> list[Cause]:
    service, bundle, insecure = spec.get("service"), spec.get("caBundle") or "", spec.get("insecureSkipTLSVerify")
    found = []
    if service is None:
        if bundle:
            found.append(invalid("spec.caBundle", f"{_size(bundle)} bytes",
                                 "local APIServices may not have a caBundle"))
        if insecure:
            found.append(invalid("spec.insecureSkipTLSVerify", True,
                                 "local APIServices may not have insecureSkipTLSVerify"))
        return found
    found += [required(f"spec.service.{field}") for field in ("namespace", "name") if not service.get(field)]
    port = service.get("port")
    if port is not None and names.port_number(port):
        found.append(invalid("spec.service.port", port, f"port is not valid: {', '.join(names.port_number(port))}"))
    if insecure and bundle:
        found.append(invalid("spec.insecureSkipTLSVerify", True, "may not be true if caBundle is present"))
    return found


def _size(bundle: str) -> int:
    try:
        return len(b64decode(bundle))
    except (binascii.Error, ValueError):
        return len(bundle)


def _conditions(obj: Object) -> list[Cause]:
    return [not_supported(f"status.conditions[{index}].status", condition.get("status") or "",
                          ["False", "True", "Unknown"])
            for index, condition in enumerate((obj.get("status") or {}).get("conditions") or ())
            if condition.get("status") not in ("True", "False", "Unknown")]
