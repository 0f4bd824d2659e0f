"""Validation of Services: type, ports, addresses, affinity; and what stays once it is set.

Whether an address or node port is free, and in the range, the allocator decides.

Upstream: ValidateService in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import (
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_many,
)
from controlplane.machinery.serviceupdate import health_checked
from controlplane.machinery.validate import metadata
from controlplane.machinery.validate.endpoints import PROTOCOLS, address
from controlplane.machinery.validate.networking import points

Object = dict[str, Any]
TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
MAX_AFFINITY_SECONDS = 86400
HEADLESS = "None"
KUBELET_PORT = 10250
HINTS, MODE = "service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode"
RANGES = "service.beta.kubernetes.io/load-balancer-source-ranges"
DISTRIBUTIONS = ("PreferClose", "PreferSameNode", "PreferSameZone")
MODES = ("Proxy", "VIP")
BALANCED = "may only be used when `type` is 'LoadBalancer'"


def service(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    kind = spec.get("type") or ""
    notes = obj["metadata"].get("annotations") or {}
    found: list[Cause] = []
    if HINTS in notes and MODE in notes and notes[HINTS] != notes[MODE]:
        found.append(invalid(f"metadata.annotations[{MODE}]", notes[MODE], f"must match annotations[{HINTS}] when both "
                             "are specified"))
    headless = spec.get("clusterIP") == HEADLESS
    if headless and kind in ("NodePort", "LoadBalancer"):
        found.append(invalid("spec.clusterIPs[0]", HEADLESS, "may not be set to 'None' for "
                             f"{'LoadBalancer' if kind == 'LoadBalancer' else 'NodePort'} services"))
    if kind == "ExternalName":
        found += _external_name(spec)
    if not spec.get("ports") and not headless and kind != "ExternalName":
        found.append(required("spec.ports"))
    found += _ports(spec.get("ports") or [], kind)
    found += metadata.labels(spec.get("selector") or {}, "spec.selector")
    found += _affinity(spec)
    if kind not in TYPES:
        found.append(not_supported("spec.type", kind, TYPES) if kind else required("spec.type"))
    for index, text in enumerate(spec.get("externalIPs") or ()):
        found += address(text, f"spec.externalIPs[{index}]")
    return found + _sources(spec, kind, notes) + _policies(spec, kind) + _addresses(spec, kind)


def _sources(spec: Object, kind: str, notes: Object) -> list[Cause]:
    """Who may reach a load balancer, by the field or by the annotation that was before it."""
    ranges, at = spec.get("loadBalancerSourceRanges") or [], "spec.LoadBalancerSourceRanges"
    paths = [f"{at}[{index}]" for index in range(len(ranges))]
    if not ranges and RANGES in notes:
        at = f"metadata.annotations[{RANGES}]"
        ranges = notes[RANGES].split(",") if notes[RANGES].strip() else []
        paths = [at] * len(ranges)
    elif not ranges:
        return []
    found = [] if kind == "LoadBalancer" else [forbidden(at, BALANCED)]
    return found + [invalid(path, bare, m) for path, bare in zip(paths, map(str.strip, ranges))
                    for m in names.cidr(bare)]


def _external_name(spec: Object) -> list[Cause]:
    name = (spec.get("externalName") or "").removesuffix(".")
    if not name:
        return [required("spec.externalName")]
    return [invalid("spec.externalName", spec["externalName"], m) for m in names.dns_subdomain(name)]


def _ports(ports: list[Object], kind: str) -> list[Cause]:
    found: list[Cause] = []
    seen_names: set[str] = set()
    seen_ports: set[tuple[Any, Any]] = set()
    seen_nodes: set[tuple[Any, Any]] = set()
    for index, port in enumerate(ports):
        at = f"spec.ports[{index}]"
        name, number, protocol = port.get("name") or "", port.get("port") or 0, port.get("protocol")
        if not name:
            if len(ports) > 1:
                found.append(required(f"{at}.name"))
        else:
            found += [invalid(f"{at}.name", name, m) for m in names.dns_label(name)]
            if name in seen_names:
                found.append(duplicate(f"{at}.name", name))
            seen_names.add(name)
        found += [invalid(f"{at}.port", number, m) for m in names.port_number(number)]
        if protocol not in PROTOCOLS:
            found.append(not_supported(f"{at}.protocol", protocol or "", PROTOCOLS))
        if kind == "LoadBalancer" and number == KUBELET_PORT:
            found.append(invalid(at, number, f"may not expose port {KUBELET_PORT} externally since it is used by "
                                 "kubelet"))
        if port.get("appProtocol") is not None:
            found += [invalid(f"{at}.appProtocol", port["appProtocol"], m)
                      for m in names.qualified_name(port["appProtocol"])]
        target = port.get("targetPort")
        if isinstance(target, int):
            found += [invalid(f"{at}.targetPort", target, m) for m in names.port_number(target)]
        elif isinstance(target, str):
            found += [invalid(f"{at}.targetPort", target, m) for m in names.port_name(target)]
        if port.get("nodePort") and kind in ("ClusterIP", "ExternalName"):
            found.append(forbidden(f"{at}.nodePort", "may not be used when `type` is 'ClusterIP'"
                                   if kind == "ClusterIP" else "may not be used when `type` is 'ExternalName'"))
        if (protocol, number) in seen_ports:
            found.append(duplicate(at, {"port": number, "protocol": protocol}))
        seen_ports.add((protocol, number))
        if port.get("nodePort"):
            if (protocol, port["nodePort"]) in seen_nodes:
                found.append(duplicate(f"{at}.nodePort", port["nodePort"]))
            seen_nodes.add((protocol, port["nodePort"]))
    return found


def _affinity(spec: Object) -> list[Cause]:
    kind = spec.get("sessionAffinity") or ""
    if kind == "None" and spec.get("sessionAffinityConfig") is not None:
        return [forbidden("spec.sessionAffinityConfig", "must not be set when session affinity is None")]
    if kind not in ("ClientIP", "None"):
        return [not_supported("spec.sessionAffinity", kind, ("ClientIP", "None"))]
    if kind == "ClientIP":
        seconds = ((spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}).get("timeoutSeconds")
        if seconds is None:
            return [required("spec.sessionAffinityConfig", "when session affinity type is ClientIP")]
        if not 0 < seconds <= MAX_AFFINITY_SECONDS:
            return [invalid("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds,
                            f"must be greater than 0 and less than {MAX_AFFINITY_SECONDS}")]
    return []


def _policies(spec: Object, kind: str) -> list[Cause]:
    found: list[Cause] = []
    external, internal = spec.get("externalTrafficPolicy"), spec.get("internalTrafficPolicy")
    outside = kind in ("NodePort", "LoadBalancer") or (kind == "ClusterIP" and spec.get("externalIPs"))
    if external and not outside:
        found.append(invalid("spec.externalTrafficPolicy", external, "may only be set for externally-accessible "
                             "services"))
    elif external and external not in ("Cluster", "Local"):
        found.append(not_supported("spec.externalTrafficPolicy", external, ("Cluster", "Local")))
    if (asked := spec.get("healthCheckNodePort")) and not health_checked(spec):
        found.append(invalid("spec.healthCheckNodePort", asked, "may only be set when `type` is 'LoadBalancer' and "
                             "`externalTrafficPolicy` is 'Local'"))
    if internal and internal not in ("Cluster", "Local"):
        found.append(not_supported("spec.internalTrafficPolicy", internal, ("Cluster", "Local")))
    if spec.get("allocateLoadBalancerNodePorts") is not None and kind != "LoadBalancer":
        found.append(forbidden("spec.allocateLoadBalancerNodePorts", BALANCED))
    if (balancer := spec.get("loadBalancerClass")) is not None:
        found += [invalid("spec.loadBalancerClass", balancer, m) for m in names.qualified_name(balancer)] \
            if kind == "LoadBalancer" else [forbidden("spec.loadBalancerClass", BALANCED)]
    distribution = spec.get("trafficDistribution")
    if distribution is not None and distribution not in DISTRIBUTIONS:
        found.append(not_supported("spec.trafficDistribution", distribution, DISTRIBUTIONS))
    return found


def _addresses(spec: Object, kind: str) -> list[Cause]:
    one, many = spec.get("clusterIP") or "", spec.get("clusterIPs") or []
    found: list[Cause] = []
    if kind == "ExternalName":
        for field in ("clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if spec.get(field):
                found.append(forbidden(f"spec.{field}", "may not be set for ExternalName services"))
        return found
    if many and one != many[0]:
        if not one:
            found.append(required("spec.clusterIP", "must be set when `clusterIPs` is set"))
        else:
            found.append(invalid("spec.clusterIPs", many, "first value must match `clusterIP`"))
    if len(many) > 2:
        found.append(too_many("spec.clusterIPs", len(many), 2))
    for index, text in enumerate(many):
        if text == HEADLESS:
            if len(many) > 1:
                found.append(invalid("spec.clusterIPs", many, "'None' must be the first and only value"))
        else:
            found += [invalid(f"spec.clusterIPs[{index}]", text, m) for m in names.ip_address(text)]
    families = spec.get("ipFamilies") or []
    for index, family in enumerate(families):
        if family not in ("IPv4", "IPv6"):
            found.append(not_supported(f"spec.ipFamilies[{index}]", family, ("IPv4", "IPv6")))
        elif family in families[:index]:
            found.append(duplicate(f"spec.ipFamilies[{index}]", family))
    policy = spec.get("ipFamilyPolicy")
    if policy and policy not in ("SingleStack", "PreferDualStack", "RequireDualStack"):
        found.append(not_supported("spec.ipFamilyPolicy", policy, ("SingleStack", "PreferDualStack",
                                                                   "RequireDualStack")))
    return found


def changes(new: Object, old: Object) -> list[Cause]:
    """Addresses stay while both types have them, and a status tells balancers of what has one."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found = _balanced(new, old)
    if "ExternalName" in (after.get("type"), before.get("type")):
        return found
    held, wanted = before.get("clusterIPs") or [], after.get("clusterIPs") or []
    if held != [HEADLESS] or wanted != [HEADLESS]:
        found += _kept("clusterIPs", "clusterIP", held, wanted, after)
    families = before.get("ipFamilies") or [], after.get("ipFamilies") or []
    if HEADLESS not in (*held, *wanted):
        found += _kept("ipFamilies", "ipFamily", *families, after)
    if health_checked(before) and health_checked(after) and \
            before.get("healthCheckNodePort") != after.get("healthCheckNodePort"):
        found.append(forbidden("spec.healthCheckNodePort", "field is immutable"))
    if before.get("loadBalancerClass") != after.get("loadBalancerClass") and before.get("type") == "LoadBalancer" == \
            after.get("type"):
        found.append(invalid("spec.loadBalancerClass", after.get("loadBalancerClass") or "", "may not change once set"))
    return found


def _balanced(new: Object, old: Object) -> list[Cause]:
    told, before = (((o.get("status") or {}).get("loadBalancer") or {}).get("ingress") or [] for o in (new, old))
    if told == before:
        return []
    at = "status.loadBalancer.ingress"
    if told and new["spec"].get("type") != "LoadBalancer":
        return [forbidden(at, "may only be used when `spec.type` is 'LoadBalancer'")]
    found = points(new, old)
    for index, point in enumerate(told):
        mode = point.get("ipMode")
        if mode is not None and not point.get("ip"):
            found.append(forbidden(f"{at}[{index}].ipMode", "may not be specified when `ip` is not set"))
        elif mode is not None and mode not in MODES:
            found.append(not_supported(f"{at}[{index}].ipMode", mode, MODES))
    return found


def _kept(field: str, called: str, held: list[str], wanted: list[str], spec: Object) -> list[Cause]:
    """The first of them stays, and the second only goes when the Service says so."""
    found: list[Cause] = []
    if held and not wanted:
        return [invalid(f"spec.{field}[0]", wanted, f"primary {called} can not be unset")]
    same = range(len(held)) if len(held) == len(wanted) else range(min(1, len(held)))
    found += [invalid(f"spec.{field}[{index}]", wanted, "may not change once set") for index in same
              if wanted[index] != held[index]]
    if len(wanted) == 1 < len(held) and spec.get("ipFamilyPolicy") != "SingleStack":
        found.append(invalid("spec.ipFamilyPolicy", spec.get("ipFamilyPolicy"), "must be set to 'SingleStack' when "
                             f"releasing the secondary {called}"))
    return found
