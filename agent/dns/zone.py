"""The answers about the cluster: Services, EndpointSlices and namespaces in, resource records out.

Pure. Owns what exists under the cluster's domain and in the reverse names of its addresses. A name here is answered
here, with an error if need be: it is never for anybody else to know. Promises upstream's answers: a service's cluster
IPs; of a headless service every ready endpoint, and no such name while there is none; endpoints by their host name or
dashed address; SRV of named ports; a CNAME for an external name; of an address the service's name or those of every
ready endpoint there; pods by their dashed address, unverified, if their namespace exists.

Called by `server` for each question that its cache cannot answer. Upstream: CoreDNS, plugin kubernetes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from agent.dns import names
from agent.dns.names import Asked, Labels

Obj = dict[str, Any]
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
A, NS, CNAME, SOA, PTR, TXT, AAAA, SRV, ANY = 1, 2, 5, 6, 12, 16, 28, 33, 255
NOERROR, NXDOMAIN = 0, 3
VERSION = "1.1.0"  # of the schema of names
SRV_PRIORITY, SRV_TOTAL_WEIGHT = 0, 100


class Source(Protocol):
    """The objects the zone is made of."""

    def service(self, namespace: str, name: str) -> Obj | None: ...
    def slices(self, namespace: str, name: str) -> Iterable[Obj]: ...
    def namespace(self, name: str) -> bool: ...
    def services_at(self, address: str) -> Iterable[Obj]: ...
    def slices_at(self, address: str) -> Iterable[Obj]: ...


@dataclass(frozen=True, slots=True)
class Record:
    """`data`: an address, a name without final dot, or (port, weight, name) of SRV."""

    name: str
    type: int
    data: Any


@dataclass(slots=True)
class Answer:
    """`follow`: an external name whose records somebody else has to look up."""

    rcode: int = NOERROR
    answers: list[Record] = field(default_factory=list)
    additional: list[Record] = field(default_factory=list)
    follow: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint of a headless service."""

    label: str
    address: str
    ports: tuple[tuple[str, str, int], ...]  # name, protocol in lower case, number


class Zone:
    """`networks`: the services' and pods' ranges, whose reverse names are answered here only."""

    def __init__(self, source: Source, domain: str, networks: Iterable[str] = (), server: str = "") -> None:
        self.source, self.domain, self.server = source, domain.strip(".").lower(), server
        self.labels = names.labels(domain)
        self.networks: tuple[Network, ...] = tuple(ipaddress.ip_network(n) for n in networks)

    def lookup(self, name: Labels, kind: int) -> Answer | None:
        """The answer to a question, None when the name is not ours to answer."""
        inside = names.below(name, self.labels)
        if inside is not None:
            return self._inside(names.read(inside), ".".join(name), kind)
        address = names.reversed_address(name)
        return self._reverse(address, ".".join(name), kind) if address is not None else None

    def _inside(self, asked: Asked, name: str, kind: int) -> Answer:
        match asked.kind:
            case "apex":
                return self._apex(name, kind)
            case "version":
                return Answer(answers=[Record(name, TXT, VERSION)] if kind in (TXT, ANY) else [])
            case "nameserver":
                return Answer(answers=_addresses(name, [self.server], kind))
            case "branch":
                return Answer()
            case "namespace":
                return Answer() if self.source.namespace(asked.namespace) else Answer(NXDOMAIN)
            case "pod":
                return self._pod(asked, name, kind)
            case "unknown":
                return Answer(NXDOMAIN)
        service = self.source.service(asked.namespace, asked.service)
        if service is None:
            return Answer(NXDOMAIN)
        if asked.kind == "endpoint":
            found = [t for t in self._targets(asked.namespace, asked.service) if t.label == asked.endpoint]
            return Answer(answers=_addresses(name, (t.address for t in found), kind)) if found else Answer(NXDOMAIN)
        if asked.kind in ("port", "protocol"):
            return self._ports(asked, service, name, kind)
        return self._service(asked, service, name, kind)

    def _apex(self, name: str, kind: int) -> Answer:
        server = f"ns.dns.{self.domain}"
        if kind in (SOA, ANY):
            return Answer(answers=[Record(name, SOA, self.domain)])
        if kind == NS:
            return Answer(answers=[Record(name, NS, server)],
                          additional=_addresses(server, [self.server], ANY))
        return Answer()

    def _pod(self, asked: Asked, name: str, kind: int) -> Answer:
        address = names.undashed(asked.endpoint)
        if not address or not self.source.namespace(asked.namespace):
            return Answer(NXDOMAIN)
        return Answer(answers=_addresses(name, [address], kind))

    def _service(self, asked: Asked, service: Obj, name: str, kind: int) -> Answer:
        spec = service.get("spec") or {}
        if spec.get("type") == "ExternalName":
            return _external(name, spec.get("externalName", ""), kind)
        addresses = [t.address for t in self._targets(asked.namespace, asked.service)] if _headless(service) else \
            _cluster_ips(service)
        if not addresses:
            return Answer(NXDOMAIN)  # as the specification has it
        return self._all_ports(asked, service, name) if kind == SRV else Answer(
            answers=_addresses(name, addresses, kind))

    def _ports(self, asked: Asked, service: Obj, name: str, kind: int) -> Answer:
        found = [(target, number) for target, port, protocol, number in self._srv(asked, service)
                 if protocol == asked.protocol and asked.port in ("", port)]
        if not found:
            return Answer(NXDOMAIN)
        if kind not in (SRV, ANY) or asked.kind == "protocol":
            return Answer()
        return self._srv_answer(name, found)

    def _all_ports(self, asked: Asked, service: Obj, name: str) -> Answer:
        return self._srv_answer(name, [(target, number) for target, _, _, number in self._srv(asked, service)])

    def _srv(self, asked: Asked, service: Obj) -> Iterator[tuple[Record, str, str, int]]:
        """(address record of the target, port's name, protocol, number) of everything the service offers."""
        base = f"{asked.service}.{asked.namespace}.svc.{self.domain}"
        if _headless(service):
            for target in self._targets(asked.namespace, asked.service):
                record = _address(f"{target.label}.{base}", target.address)
                yield from ((record, *port) for port in target.ports)
            return
        for address in _cluster_ips(service):
            for port in (service.get("spec") or {}).get("ports") or ():
                yield (_address(base, address), port.get("name") or "", (port.get("protocol") or "TCP").lower(),
                       port["port"])

    def _srv_answer(self, name: str, found: list[tuple[Record, int]]) -> Answer:
        pairs = list(dict.fromkeys((record.name, number) for record, number in found))
        weight = max(1, SRV_TOTAL_WEIGHT // len(pairs)) if pairs else 0
        return Answer(answers=[Record(name, SRV, (number, weight, target)) for target, number in pairs],
                      additional=list(dict.fromkeys(record for record, _ in found)))

    def _targets(self, namespace: str, name: str) -> list[Target]:
        """The ready endpoints, each once: slices may show one twice while they are moved."""
        found: dict[tuple[str, str], Target] = {}
        for piece in self.source.slices(namespace, name):
            ports = tuple((p.get("name") or "", (p.get("protocol") or "TCP").lower(), p["port"])
                          for p in piece.get("ports") or () if p.get("port"))
            for entry in piece.get("endpoints") or ():
                if not _ready(entry):
                    continue
                for address in entry.get("addresses") or ():
                    label = _label(entry, address)
                    found.setdefault((label, address), Target(label, address, ports))
        return sorted(found.values(), key=lambda t: (t.label, t.address))

    def _reverse(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, name: str, kind: int) -> Answer | None:
        text = str(address)
        targets = [f"{_path(s)}.svc.{self.domain}" for s in self.source.services_at(text)]
        targets = sorted(set(targets)) or self._endpoints_at(text)
        if targets:
            return Answer(answers=[Record(name, PTR, t) for t in targets] if kind in (PTR, ANY) else [])
        ours = any(address.version == n.version and address in n for n in self.networks)
        return Answer(NXDOMAIN) if ours else None

    def _endpoints_at(self, address: str) -> list[str]:
        """Names of an endpoint: those by a host name first, which clients that want one name are to see."""
        found = set()
        for piece in self.source.slices_at(address):
            owner = (piece["metadata"].get("labels") or {}).get("kubernetes.io/service-name")
            found |= {(not e.get("hostname"), f"{_label(e, address)}.{owner}.{piece['metadata']['namespace']}")
                      for e in piece.get("endpoints") or () if owner and _ready(e)
                      and address in (e.get("addresses") or ())}
        return [f"{path}.svc.{self.domain}" for _, path in sorted(found)]


def _path(service: Obj) -> str:
    return f"{service['metadata']['name']}.{service['metadata']['namespace']}"


def _headless(service: Obj) -> bool:
    return (service.get("spec") or {}).get("clusterIP") in (None, "", "None")


def _ready(endpoint: Obj) -> bool:
    return (endpoint.get("conditions") or {}).get("ready") is not False


def _label(endpoint: Obj, address: str) -> str:
    return (endpoint.get("hostname") or names.dashed(address)).lower()


def _cluster_ips(service: Obj) -> list[str]:
    spec = service.get("spec") or {}
    return list(spec.get("clusterIPs") or [spec["clusterIP"]])


def _address(name: str, address: str) -> Record:
    return Record(name, AAAA if ":" in address else A, address)


def _addresses(name: str, addresses: Iterable[str], kind: int) -> list[Record]:
    made = [_address(name, a) for a in addresses if a]
    return [r for r in made if kind in (r.type, ANY)]


def _external(name: str, target: str, kind: int) -> Answer:
    target = target.rstrip(".").lower()
    try:
        ipaddress.ip_address(target)
    except ValueError:
        return Answer(answers=[Record(name, CNAME, target)], follow=target if kind in (A, AAAA) else "")
    return Answer(NXDOMAIN)  # digits of a name, as the API has it: never an address
