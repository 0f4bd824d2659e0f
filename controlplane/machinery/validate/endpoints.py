"""Validation of Endpoints and EndpointSlices.

Upstream: ValidateEndpoints in k8s.io/kubernetes/pkg/apis/core/validation and pkg/apis/discovery/validation.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import IMMUTABLE, Cause, duplicate, invalid, not_supported, required, too_many

Object = dict[str, Any]
PROTOCOLS = ("TCP", "UDP", "SCTP")
_ADDRESS_TYPES = ("IPv4", "IPv6", "FQDN")
MAX_ADDRESSES = 100
MAX_PORTS = 20000
MAX_ENDPOINTS = 1000
MAX_HINTS = 8
_NEAR = {4: ipaddress.ip_network("224.0.0.0/24"), 6: ipaddress.ip_network("ff02::/16")}  # multicast on one link


def address(text: str, path: str) -> list[Cause]:
    """An address that traffic may be sent to."""
    if faults := names.ip_address(text):
        return [invalid(path, text, m) for m in faults]
    parsed = ipaddress.ip_address(text)
    for wrong, why in ((parsed.is_unspecified, f"may not be unspecified ({text})"),
                       (parsed.is_loopback, "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
                       (parsed.is_link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
                       (parsed in _NEAR[parsed.version],
                        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")):
        if wrong:
            return [invalid(path, text, why)]
    return []


def endpoints(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    for index, subset in enumerate(obj.get("subsets") or ()):
        at = f"subsets[{index}]"
        ready, others = subset.get("addresses") or (), subset.get("notReadyAddresses") or ()
        if not ready and not others:
            found.append(required(at, "must specify `addresses` or `notReadyAddresses`"))
        for field, listed in (("addresses", ready), ("notReadyAddresses", others)):
            for position, entry in enumerate(listed):
                found += address(entry.get("ip") or "", f"{at}.{field}[{position}].ip")
                found += _host(entry, f"{at}.{field}[{position}]")
        ports = subset.get("ports") or ()
        for position, port in enumerate(ports):
            found += _port(port, len(ports) > 1, f"{at}.ports[{position}]")
    return found


def _port(port: Object, named: bool, path: str) -> list[Cause]:
    found: list[Cause] = []
    name = port.get("name") or ""
    if named and not name:
        found.append(required(f"{path}.name"))
    elif name:
        found += [invalid(f"{path}.name", name, m) for m in names.dns_label(name)]
    found += [invalid(f"{path}.port", port.get("port", 0), m) for m in names.port_number(port.get("port") or 0)]
    return found + protocol(port, path) + _application(port, path)


def _application(port: Object, path: str) -> list[Cause]:
    name = port.get("appProtocol")
    return [] if name is None else [invalid(f"{path}.appProtocol", name, m) for m in names.qualified_name(name)]


def _host(endpoint: Object, path: str) -> list[Cause]:
    """The name of an endpoint within its Service, and the node it is on."""
    return [invalid(f"{path}.{field}", endpoint[field], m)
            for field, rule in (("nodeName", names.dns_subdomain), ("hostname", names.dns_label))
            if endpoint.get(field) for m in rule(endpoint[field])]


def protocol(port: Object, path: str) -> list[Cause]:
    value = port.get("protocol") or ""
    if not value:
        return [required(f"{path}.protocol")]
    return [] if value in PROTOCOLS else [not_supported(f"{path}.protocol", value, PROTOCOLS)]


def endpoint_slice(obj: Object) -> list[Cause]:
    kind = obj.get("addressType") or ""
    found: list[Cause] = []
    if not kind:
        found.append(required("addressType"))
    elif kind not in _ADDRESS_TYPES:
        found.append(not_supported("addressType", kind, _ADDRESS_TYPES))
    listed = obj.get("endpoints") or []
    if len(listed) > MAX_ENDPOINTS:
        return [*found, too_many("endpoints", len(listed), MAX_ENDPOINTS)]
    for index, endpoint in enumerate(listed):
        found += _endpoint(endpoint, kind, f"endpoints[{index}]")
    return found + _slice_ports(obj.get("ports") or [])


def _endpoint(endpoint: Object, kind: str, path: str) -> list[Cause]:
    found: list[Cause] = []
    addresses = endpoint.get("addresses") or []
    if not addresses:
        found.append(required(f"{path}.addresses", "must contain at least 1 address"))
    if len(addresses) > MAX_ADDRESSES:
        found.append(too_many(f"{path}.addresses", len(addresses), MAX_ADDRESSES))
    for position, text in enumerate(addresses):
        at = f"{path}.addresses[{position}]"
        if kind == "FQDN":
            domain = text.removesuffix(".")
            found += [invalid(at, text, m) for m in names.dns_subdomain(domain)] or ([] if "." in domain else [
                invalid(at, text, "should be a domain with at least two segments separated by dots")])
            continue
        wrong = address(text, at)
        if not wrong and kind in ("IPv4", "IPv6") and (":" in text) != (kind == "IPv6"):
            wrong = [invalid(at, text, f"must be an {kind} address")]
        found += wrong
    return found + _host(endpoint, path) + _hints(endpoint.get("hints") or {}, f"{path}.hints")


def _hints(hints: Object, path: str) -> list[Cause]:
    """For which zones and nodes an endpoint is."""
    found: list[Cause] = []
    for field, rule in (("forZones", names.label_value), ("forNodes", names.dns_subdomain)):
        listed = [hint.get("name") or "" for hint in hints.get(field) or ()]
        if len(listed) > MAX_HINTS:
            found.append(too_many(f"{path}.{field}", len(listed), MAX_HINTS))
            continue
        for index, name in enumerate(listed):
            at = f"{path}.{field}[{index}].name"
            found += [duplicate(at, name)] * (name in listed[:index]) + [invalid(at, name, m) for m in rule(name)]
    return found


def _slice_ports(ports: list[Object]) -> list[Cause]:
    if len(ports) > MAX_PORTS:
        return [too_many("ports", len(ports), MAX_PORTS)]
    found: list[Cause] = []
    seen: set[str] = set()
    for index, port in enumerate(ports):
        name = port.get("name") or ""
        if name:
            found += [invalid(f"ports[{index}].name", name, m) for m in names.dns_label(name)]
        if name in seen:
            found.append(duplicate(f"ports[{index}].name", name))
        seen.add(name)
        found += protocol(port, f"ports[{index}]") + _application(port, f"ports[{index}]")
    return found


def slice_changes(new: Object, old: Object) -> list[Cause]:
    if new.get("addressType") == old.get("addressType"):
        return []
    return [invalid("addressType", new.get("addressType") or "", IMMUTABLE)]
