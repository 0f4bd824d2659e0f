"""What a Service wants, reduced to what rules need: one frozen `ServicePort` per port, with the endpoints to use now.

Pure. Owns the reading of Service and EndpointSlice objects: which services are ours at all, which endpoints count (the
ready ones; while there is none, the terminating ones that still serve), which of them are on this node, what the
traffic policies and affinity ask. All are named tuples: equality means "no rule changes", and a full load makes and
compares a hundred thousand of them in no time.

Called by `proxy` for each service whose objects changed.
Upstream: pkg/proxy (servicechangetracker, endpointslicecache, topology).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Obj = dict[str, Any]
ServiceKey = tuple[str, str]  # namespace, name
SERVICE_LABEL = "kubernetes.io/service-name"
PROXY_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
AFFINITY_SECONDS = 10800  # the API's default time-out of ClientIP affinity
_NONE: Obj = {}


class Endpoint(NamedTuple):
    """Where a connection may end. `local`: on this node."""

    address: str
    port: int
    local: bool = False

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class ServicePort(NamedTuple):
    """One port of one service. `cluster` and `local`: the endpoints for either traffic policy.

    `beside` are those that serve whom they have but get nobody new. `affinity` is the ClientIP time-out in seconds, 0
    without affinity; `ready_here` how many endpoints of this node are ready, which is what balancers ask."""

    namespace: str
    service: str
    port_name: str
    protocol: str
    cluster_ip: str
    port: int
    node_port: int = 0
    external_ips: tuple[str, ...] = ()
    load_balancer_ips: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    affinity: int = 0
    internal_local: bool = False
    external_local: bool = False
    health_port: int = 0
    ready_here: int = 0
    cluster: tuple[Endpoint, ...] = ()
    local: tuple[Endpoint, ...] = ()
    beside: tuple[Endpoint, ...] = ()

    @property
    def name(self) -> str:
        """`namespace/service:port`, which upstream's chain names and comments are made from."""
        return f"{self.namespace}/{self.service}" + (f":{self.port_name}" if self.port_name else "")

    @property
    def external(self) -> bool:
        return bool(self.node_port or self.external_ips or self.load_balancer_ips)

    @property
    def internal_endpoints(self) -> tuple[Endpoint, ...]:
        return self.local if self.internal_local else self.cluster

    @property
    def addresses(self) -> tuple[str, ...]:
        """Every address of its own, without the node's."""
        return (self.cluster_ip, *self.external_ips, *self.load_balancer_ips)


def is_family(address: str, family: int) -> bool:
    return (":" in address) == (family == 6)


def is_ours(service: Obj) -> bool:
    """Whether this proxy answers for the service: not headless, not external by name, not another proxy's."""
    spec = service.get("spec") or {}
    if spec.get("type") == "ExternalName" or spec.get("clusterIP") in (None, "", "None"):
        return False
    labels = service["metadata"].get("labels") or _NONE
    return PROXY_LABEL not in labels and HEADLESS_LABEL not in labels


def service_ports(service: Obj | None, slices: Iterable[Obj], node: str, family: int = 4,
                  zone: str = "") -> tuple[ServicePort, ...]:
    """Every port of the service with its endpoints; () when it is gone or not ours. `zone`: the node's, "" for none."""
    if service is None or not is_ours(service):
        return ()
    spec, meta = service["spec"], service["metadata"]
    ips = [ip for ip in spec.get("clusterIPs") or [spec["clusterIP"]] if is_family(ip, family)]
    if not ips:
        return ()
    kind = spec.get("type", "ClusterIP")
    balancers = _balancer_ips(service, family) if kind == "LoadBalancer" else ()
    affinity = 0
    if spec.get("sessionAffinity") == "ClientIP":
        config = (spec.get("sessionAffinityConfig") or {}).get("clientIP") or {}
        affinity = config.get("timeoutSeconds") or AFFINITY_SECONDS
    usable = [s for s in slices if s.get("addressType", "IPv4") == ("IPv6" if family == 6 else "IPv4")]
    external_ips = tuple(_readable(spec.get("externalIPs") or (), family))
    ranges = tuple(sorted(_readable(spec.get("loadBalancerSourceRanges") or (), family, _range)))
    found = []
    for port in spec.get("ports") or []:
        name, protocol = port.get("name") or "", port.get("protocol") or "TCP"
        candidates = _candidates(usable, name, protocol, node)
        cluster, local, ready_here = choose(candidates, node, zone)
        found.append(ServicePort(
            meta.get("namespace") or "", meta["name"], name, protocol.lower(), ips[0], port["port"],
            port.get("nodePort") or 0 if kind != "ClusterIP" else 0,
            external_ips, balancers, ranges, affinity,
            spec.get("internalTrafficPolicy") == "Local", spec.get("externalTrafficPolicy") == "Local",
            spec.get("healthCheckNodePort") or 0, ready_here, cluster, local,
            tuple(sorted({*candidates.ready, *candidates.draining}.difference(cluster, local)))))
    return tuple(found)


class Candidates(NamedTuple):
    """Where connections to one port of a service may end, as its slices tell."""

    ready: dict[Endpoint, Obj]  # with the slice's hints for whom it is, {} without
    draining: list[Endpoint]  # terminating, and still serving


def choose(found: Candidates, node: str = "",
           zone: str = "") -> tuple[tuple[Endpoint, ...], tuple[Endpoint, ...], int]:
    """(for policy Cluster, for policy Local, how many of this node are ready).

    They are the ready ones, or while there is none, the draining ones. Of the ready ones for policy Cluster those that
    are hinted to be for this node, or for its zone."""
    here = [e for e in found.ready if e.local]
    local = here or [e for e in found.draining if e.local]
    return tuple(sorted(_near(found.ready, node, zone) or found.draining)), tuple(sorted(local)), len(here)


def _near(ready: dict[Endpoint, Obj], node: str, zone: str) -> Iterable[Endpoint]:
    """Hints count when every endpoint has them and one is for us: else somebody would be left without any."""
    if not any(ready.values()):
        return ready
    for hint, ours in (("forNodes", node), ("forZones", zone)):
        if ours and all(hints.get(hint) for hints in ready.values()):
            mine = [e for e, hints in ready.items() if any(one["name"] == ours for one in hints[hint])]
            if mine:
                return mine
    return ready


def _candidates(slices: Iterable[Obj], port_name: str, protocol: str, node: str) -> Candidates:
    ready: dict[Endpoint, Obj] = {}
    draining: dict[Endpoint, None] = {}
    for piece in slices:
        number = _target(piece, port_name, protocol)
        if not number:
            continue
        for entry in piece.get("endpoints") or ():
            addresses, conditions = entry.get("addresses"), entry.get("conditions")
            if not addresses:
                continue
            # Only the first: a slice's entry is one endpoint, and the rest is by-names.
            endpoint = Endpoint(addresses[0], number, node != "" and entry.get("nodeName") == node)
            if not conditions or conditions.get("ready") is not False:
                ready[endpoint] = entry.get("hints") or _NONE
            elif conditions.get("terminating") and conditions.get("serving") is not False:
                draining[endpoint] = None
    return Candidates(ready, [e for e in draining if e not in ready])  # moving slices show an endpoint twice


def _target(piece: Obj, port_name: str, protocol: str) -> int:
    """The port that a slice's endpoints have for a service's, 0 for none."""
    for port in piece.get("ports") or ():
        if (port.get("name") or "") == port_name and (port.get("protocol") or "TCP") == protocol:
            return port.get("port") or 0
    return 0


def _balancer_ips(service: Obj, family: int) -> tuple[str, ...]:
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return tuple(_readable([i["ip"] for i in ingress if i.get("ip") and i.get("ipMode", "VIP") == "VIP"], family))


def _readable(given: Iterable[str], family: int, read: Callable[[str], Any] = ipaddress.ip_address) -> Iterable[str]:
    """Those of a family, as the kernel's tools print them."""
    for text in given:
        try:
            one = read(text)
        except ValueError:
            continue  # validation refuses it; an old object must not stop all rules
        if one.version == family:
            yield str(one)


def _range(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text.strip(), strict=False)
