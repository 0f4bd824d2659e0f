"""Validation of Ingresses and their classes, NetworkPolicies, ServiceCIDRs and IPAddresses.

Upstream: k8s.io/kubernetes/pkg/apis/networking/validation.
"""

from __future__ import annotations

import ipaddress
from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, not_supported, required, too_many
from controlplane.machinery.validate.endpoints import PROTOCOLS
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
CLASS_ANNOTATION = "kubernetes.io/ingress.class"
MAX_CONTROLLER = 250
_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")
_SEQUENCES = ("//", "/./", "/../", "%2f", "%2F")
_ENDINGS = ("/..", "/.")


def ingress(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = _class_named_twice(obj)
    if not spec.get("rules") and spec.get("defaultBackend") is None:
        found.append(invalid("spec", spec, "either `defaultBackend` or `rules` must be specified"))
    if spec.get("defaultBackend") is not None:
        found += _backend(spec["defaultBackend"], "spec.defaultBackend")
    for index, rule in enumerate(spec.get("rules") or ()):
        at = f"spec.rules[{index}]"
        found += _host(rule.get("host") or "", f"{at}.host")
        if rule.get("http") is not None:
            found += _paths(rule["http"].get("paths") or [], f"{at}.http.paths")
    for index, tls in enumerate(spec.get("tls") or ()):
        for position, host in enumerate(tls.get("hosts") or ()):
            at = f"spec.tls[{index}].hosts[{position}]"
            found += [invalid(at, host, m) for m in (wildcard(host) if "*" in host else names.dns_subdomain(host))]
        if tls.get("secretName"):
            found += [invalid(f"spec.tls[{index}].secretName", tls["secretName"], m)
                      for m in names.dns_subdomain(tls["secretName"])]
    if spec.get("ingressClassName") is not None:
        found += [invalid("spec.ingressClassName", spec["ingressClassName"], m)
                  for m in names.dns_subdomain(spec["ingressClassName"])]
    return found


def points(new: Object, old: Object) -> list[Cause]:
    """Where a status that changes says that a balancer answers, of an Ingress or a Service: nodes rely on it."""
    after, before = (((o.get("status") or {}).get("loadBalancer") or {}).get("ingress") or [] for o in (new, old))
    found: list[Cause] = []
    for index, point in enumerate(after if after != before else ()):
        at, ip, host = f"status.loadBalancer.ingress[{index}]", point.get("ip"), point.get("hostname")
        if ip:
            found += [invalid(f"{at}.ip", ip, m) for m in names.ip_address(ip)]
        if host:
            found += [invalid(f"{at}.hostname", host, m) for m in names.dns_subdomain(host)]
            if not names.ip_address(host):
                found.append(invalid(f"{at}.hostname", host, "must be a DNS name, not an IP address"))
    return found


def _class_named_twice(obj: Object) -> list[Cause]:
    """The old annotation and the field exclude each other."""
    annotation = ((obj.get("metadata") or {}).get("annotations") or {}).get(CLASS_ANNOTATION)
    if annotation is None or (obj.get("spec") or {}).get("ingressClassName") is None:
        return []
    return [invalid(f"metadata.annotations[{CLASS_ANNOTATION}]", annotation,
                    "can not be set when the class field is also set")]


def wildcard(text: str) -> list[str]:
    """`*.example.com`."""
    if text.startswith("*.") and not names.dns_subdomain(text[2:]):
        return []
    return ["a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist "
            "of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. "
            r"'*.example.com', regex used for validation is '\*\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]"
            "([-a-z0-9]*[a-z0-9])?)*')"]


def _host(host: str, path: str) -> list[Cause]:
    if not host:
        return []
    if not names.ip_address(host):
        return [invalid(path, host, "must be a DNS name, not an IP address")]
    return [invalid(path, host, m) for m in (wildcard(host) if "*" in host else names.dns_subdomain(host))]


def _paths(paths: list[Object], path: str) -> list[Cause]:
    if not paths:
        return [required(path)]
    found: list[Cause] = []
    for index, each in enumerate(paths):
        at, kind, where = f"{path}[{index}]", each.get("pathType"), each.get("path") or ""
        if kind is None:
            found.append(required(f"{at}.pathType", "pathType must be specified"))
        elif kind not in _PATH_TYPES:
            found.append(not_supported(f"{at}.pathType", kind, _PATH_TYPES))
        elif kind == "ImplementationSpecific":
            if where and not where.startswith("/"):
                found.append(invalid(f"{at}.path", where, "must be an absolute path"))
        elif not where.startswith("/"):
            found.append(invalid(f"{at}.path", where, "must be an absolute path"))
        else:
            found += [invalid(f"{at}.path", where, f"must not contain '{s}'") for s in _SEQUENCES if s in where]
            found += [invalid(f"{at}.path", where, f"cannot end with '{s}'") for s in _ENDINGS if where.endswith(s)]
        found += _backend(each.get("backend") or {}, f"{at}.backend")
    return found


def _backend(backend: Object, path: str) -> list[Cause]:
    service, resource = backend.get("service"), backend.get("resource")
    if resource is not None and service is not None:
        return [invalid(path, "", "cannot set both resource and service backends")]
    if resource is not None:
        return [required(f"{path}.resource.{f}") for f in ("kind", "name") if not resource.get(f)]
    if service is None:
        return [required(path, "port name or number is required for service backends, or a resource must be given")]
    found: list[Cause] = []
    if not service.get("name"):
        found.append(required(f"{path}.service.name"))
    else:
        found += [invalid(f"{path}.service.name", service["name"], m) for m in names.dns_1035_label(service["name"])]
    port = service.get("port") or {}
    name, number = port.get("name") or "", port.get("number") or 0
    if name and number:
        found.append(invalid(path, "", "cannot set both port name & port number"))
    elif name:
        found += [invalid(f"{path}.service.port.name", name, m) for m in names.port_name(name)]
    elif number:
        found += [invalid(f"{path}.service.port.number", number, m) for m in names.port_number(number)]
    else:
        found.append(required(path, "port name or number is required"))
    return found


def ingress_class(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    controller, found = spec.get("controller") or "", []
    if len(controller) > MAX_CONTROLLER:
        found.append(Cause("FieldValueTooLong", f"Too long: may not be more than {MAX_CONTROLLER} bytes",
                           "spec.controller"))
    found += domain_path(controller, "spec.controller")
    parameters = spec.get("parameters")
    if parameters is None:
        return found
    at, space, scope = "spec.parameters", parameters.get("namespace"), parameters.get("scope")
    found += [required(f"{at}.{f}") for f in ("kind", "name") if not parameters.get(f)]
    if scope not in ("Cluster", "Namespace"):
        return [*found, required(f"{at}.scope") if not scope else not_supported(
            f"{at}.scope", scope, ("Cluster", "Namespace"))]
    if scope == "Namespace" and not space:
        found.append(required(f"{at}.namespace", "`parameters.scope` is set to 'Namespace'"))
    elif scope == "Namespace":
        found += [invalid(f"{at}.namespace", space, m) for m in names.dns_label(space)]
    elif space is not None:
        found.append(forbidden(f"{at}.namespace", "`parameters.scope` is set to 'Cluster'"))
    return found


def domain_path(text: str, path: str) -> list[Cause]:
    """`acme.io/foo`."""
    if not text:
        return [required(path)]
    domain, slash, rest = text.partition("/")
    if not slash or not domain or not rest:
        return [invalid(path, text, 'must be a domain-prefixed path (such as "acme.io/foo")')]
    return [invalid(path, domain, m) for m in names.dns_subdomain(domain)]


def ingress_class_changes(new: Object, old: Object) -> list[Cause]:
    after, before = ((o.get("spec") or {}).get("controller") for o in (new, old))
    return [] if after == before else [invalid("spec.controller", after, IMMUTABLE)]


def network_policy(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = label_selector(spec.get("podSelector") or {}, "spec.podSelector")
    for direction, field in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(direction) or ()):
            at = f"spec.{direction}[{index}]"
            for position, port in enumerate(rule.get("ports") or ()):
                found += _policy_port(port, f"{at}.ports[{position}]")
            for position, peer in enumerate(rule.get(field) or ()):
                found += _peer(peer, f"{at}.{field}[{position}]")
    kinds = spec.get("policyTypes") or []
    if len(kinds) > 2:
        found.append(invalid("spec.policyTypes", kinds, "may not specify more than two policyTypes"))
        return found
    return found + [not_supported(f"spec.policyTypes[{i}]", kind, ("Egress", "Ingress"))
                    for i, kind in enumerate(kinds) if kind not in ("Egress", "Ingress")]


def _policy_port(port: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    if port.get("protocol") not in (None, *PROTOCOLS):
        found.append(not_supported(f"{path}.protocol", port["protocol"], PROTOCOLS))
    number, end = port.get("port"), port.get("endPort")
    if isinstance(number, str):
        found += [invalid(f"{path}.port", number, m) for m in names.port_name(number)]
        if end is not None:
            found.append(invalid(f"{path}.endPort", end, "may not be specified when `port` is non-numeric"))
    elif number is not None:
        found += [invalid(f"{path}.port", number, m) for m in names.port_number(number)]
        if end is not None and end < number:
            found.append(invalid(f"{path}.endPort", end, "must be greater than or equal to `port`"))
        elif end is not None:
            found += [invalid(f"{path}.endPort", end, m) for m in names.port_number(end)]
    elif end is not None:
        found.append(required(f"{path}.port", "must be specified when `endPort` is specified"))
    return found


def _peer(peer: Object, path: str) -> list[Cause]:
    given = [f for f in ("podSelector", "namespaceSelector", "ipBlock") if peer.get(f) is not None]
    if not given:
        return [required(path, "must specify a peer")]
    if "ipBlock" in given and len(given) > 1:
        return [forbidden(path, "may not specify both ipBlock and another peer")]
    found: list[Cause] = []
    for field in given[:2]:
        if field != "ipBlock":
            found += label_selector(peer[field], f"{path}.{field}")
    if "ipBlock" in given:
        found += _block(peer["ipBlock"], f"{path}.ipBlock")
    return found


def _block(block: Object, path: str) -> list[Cause]:
    text = block.get("cidr") or ""
    if not text:
        return [required(f"{path}.cidr")]
    if faults := names.cidr(text):
        return [invalid(f"{path}.cidr", text, m) for m in faults]
    whole, found = ipaddress.ip_network(text, strict=False), []
    for index, inner in enumerate(block.get("except") or ()):
        at = f"{path}.except[{index}]"
        if faults := names.cidr(inner):
            found += [invalid(at, inner, m) for m in faults]
            continue
        part = ipaddress.ip_network(inner, strict=False)
        if part.version != whole.version or part == whole or not part.subnet_of(whole):  # type: ignore[arg-type]
            found.append(invalid(at, inner, "must be a strict subset of `cidr`"))
    return found


def service_cidr(obj: Object) -> list[Cause]:
    ranges = (obj.get("spec") or {}).get("cidrs") or []
    if not ranges:
        return [required("spec.cidrs", "at least one CIDR required")]
    if len(ranges) > 2:
        return [too_many("spec.cidrs", len(ranges), 2)]
    found = [invalid(f"spec.cidrs[{i}]", text, m) for i, text in enumerate(ranges) for m in names.cidr(text)]
    if found:
        return found
    networks = [ipaddress.ip_network(text, strict=False) for text in ranges]
    for index, (text, network) in enumerate(zip(ranges, networks)):
        if str(network) != text:
            found.append(invalid(f"spec.cidrs[{index}]", text,
                                 f"must be in canonical form, that is \"{network}\""))
    if len(networks) == 2 and networks[0].version == networks[1].version:
        found.append(invalid("spec.cidrs", ranges, "may specify no more than one IP for each IP family, i.e "
                             "192.168.0.0/24 and 2001:db8::/64"))
    return found


def service_cidr_changes(new: Object, old: Object) -> list[Cause]:
    after, before = ((o.get("spec") or {}).get("cidrs") or [] for o in (new, old))
    if after == before or (len(before) == 1 and len(after) == 2 and after[0] == before[0]):
        return []  # a second family may be added
    return [invalid("spec.cidrs", after, IMMUTABLE)]


def ip_name(text: str) -> list[str]:
    """An IPAddress is named by its address, in the one form of it."""
    if faults := names.ip_address(text):
        return faults
    canonical = str(ipaddress.ip_address(text))
    return [] if canonical == text else [f'must be a canonical format IP address, that is "{canonical}"']


def ip_address(obj: Object) -> list[Cause]:
    reference = (obj.get("spec") or {}).get("parentRef")
    if reference is None:
        return [required("spec.parentRef")]
    found: list[Cause] = []
    for field in ("group", "resource", "name", "namespace"):
        text = reference.get(field) or ""
        if not text and field in ("resource", "name"):
            found.append(required(f"spec.parentRef.{field}"))
        elif text and field == "group":
            found += [invalid("spec.parentRef.group", text, m) for m in names.dns_subdomain(text)]
        elif text:
            found += [invalid(f"spec.parentRef.{field}", text, m) for m in names.path_segment(text)]
    return found


def ip_address_changes(new: Object, old: Object) -> list[Cause]:
    after, before = ((o.get("spec") or {}).get("parentRef") for o in (new, old))
    return [] if after == before else [invalid("spec.parentRef", after, IMMUTABLE)]
