"""What writing a Service carries over and drops: addresses and node ports survive updates that do not name them, and
leave with the type that needed them.

Pure, in place; called by `strategy` before validation. Allocation itself is the apiserver's.

Upstream: k8s.io/kubernetes/pkg/registry/core/service (patchAllocatedValues, normalizeClusterIPs,
dropTypeDependentFields).
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
_ADDRESSED = ("ClusterIP", "NodePort", "LoadBalancer")
_NODE_PORTED = ("NodePort", "LoadBalancer")


def prepare_service(new: Object, old: Object | None) -> None:
    """`old` is None at a create."""
    spec = new["spec"]
    before = (old or {}).get("spec") or {}
    _normalize(spec, before)
    if old is not None:
        _carry(spec, before)
        _drop(spec, before)
        if spec.get("type") != "LoadBalancer" and "loadBalancer" in (new.get("status") or {}):
            new["status"] = {**new["status"], "loadBalancer": {}}  # nobody balances any more, whoever cleans up later


def _normalize(spec: Object, before: Object) -> None:
    """`clusterIP` and `clusterIPs[0]` are one: a writer that knows one of them sets both."""
    one, many = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    if not before:
        if one and not many:
            spec["clusterIPs"] = [one]
        elif many and not one:
            spec["clusterIP"] = many[0]
        return
    was = before.get("clusterIP") or ""
    if one != was and many == (before.get("clusterIPs") or []):
        if one:
            spec["clusterIPs"] = [one]
        else:
            spec.pop("clusterIPs", None)


def _carry(spec: Object, before: Object) -> None:
    """Keep what was allocated and is not mentioned."""
    if _addressed(spec) and _addressed(before):
        if not spec.get("clusterIP") and before.get("clusterIP"):
            spec["clusterIP"] = before["clusterIP"]
        if not spec.get("clusterIPs") and spec.get("clusterIP") == before.get("clusterIP") and before.get("clusterIPs"):
            spec["clusterIPs"] = list(before["clusterIPs"])
        for field in ("ipFamilies", "ipFamilyPolicy"):
            if not spec.get(field) and before.get(field):
                spec[field] = before[field]
    if _node_ported(spec) and _node_ported(before):
        taken = {p["nodePort"] for p in spec.get("ports") or () if p.get("nodePort")}
        known = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            was = known.get((port.get("protocol"), port.get("port")))
            if not port.get("nodePort") and was and was not in taken:
                port["nodePort"] = was
                taken.add(was)
    if (health_checked(spec) and health_checked(before) and before.get("healthCheckNodePort")
            and not spec.get("healthCheckNodePort")):
        spec["healthCheckNodePort"] = before["healthCheckNodePort"]


def _drop(spec: Object, before: Object) -> None:
    """What the old type needed and the new one has no use for goes, when the writer merely left it standing."""
    if _addressed(before) and not _addressed(spec) and spec.get("clusterIP") == before.get("clusterIP"):
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"):
            spec.pop(field, None)
    if _node_ported(before) and not _node_ported(spec):
        was = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in before.get("ports") or ()}
        for port in spec.get("ports") or ():
            if port.get("nodePort") in (was.get((port.get("protocol"), port.get("port"))), 0):
                port.pop("nodePort", None)
        if spec.get("externalTrafficPolicy") == before.get("externalTrafficPolicy") and not spec.get("externalIPs"):
            spec.pop("externalTrafficPolicy", None)
    if (health_checked(before) and not health_checked(spec)
            and spec.get("healthCheckNodePort") == before.get("healthCheckNodePort")):
        spec.pop("healthCheckNodePort", None)
    if before.get("type") == "LoadBalancer" and spec.get("type") != "LoadBalancer":
        for field in ("allocateLoadBalancerNodePorts", "loadBalancerClass"):
            if spec.get(field) == before.get(field):
                spec.pop(field, None)


def _addressed(spec: Object) -> bool:
    return spec.get("type", "ClusterIP") in _ADDRESSED


def _node_ported(spec: Object) -> bool:
    if spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is False:
        return False
    return spec.get("type") in _NODE_PORTED


def health_checked(spec: Object) -> bool:
    """Whether balancers ask its nodes who has endpoints, on a port of its own."""
    return spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local"
