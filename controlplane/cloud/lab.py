"""Addresses for `type: LoadBalancer` on hosts without a cloud: pools of free addresses of the hosts' own network.

Pure. Owns the reading of pools and the choice of an address. A Service's status is the only memory, so nothing can be
given twice or leak. An address is kept for as long as the Service wants one and the pool has it; `spec.loadBalancerIP`
asks for a certain one, the annotation `pelamis.local/address-pool` for a pool. Which node answers for an address is
the nodes' own affair (`agent.proxy.announce`).

Called by `controllers.balancers`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from controlplane.machinery.errors import Finding

CLASS = "pelamis.local/pool"  # the loadBalancerClass that asks for us by name
POOL = "pelamis.local/address-pool"  # annotation: which pool
CONFIG = "kube-system", "load-balancer-pools"  # the ConfigMap of the pools
MOST = 1 << 16  # addresses of one span: more is no lab's network but a mistake in writing
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Obj = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Addresses from `first` to `last`, both included, of the pool of this name."""

    pool: str
    first: Address
    last: Address

    def __contains__(self, address: Address) -> bool:
        return address.version == self.first.version and int(self.first) <= int(address) <= int(self.last)

    def __iter__(self) -> Iterator[Address]:
        make = type(self.first)
        return (make(value) for value in range(int(self.first), int(self.last) + 1))

    def meets(self, network: Network) -> bool:
        return network.version == self.first.version and \
            int(self.first) <= int(network.broadcast_address) and int(network.network_address) <= int(self.last)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"


def read(data: Mapping[str, str], used: Mapping[str, str] = {}) -> tuple[list[Span], list[Finding]]:
    """The pools of a ConfigMap: by name, spans such as `192.168.56.200-192.168.56.220` or `192.168.56.240/28`, by line
    or comma. `used`: networks and addresses that are taken, with what takes them; spans that meet one are refused."""
    spans: list[Span] = []
    problems: list[Finding] = []
    for pool, text in sorted(data.items()):
        for part in re.sub(r"\s*-\s*", "-", text).replace(",", " ").split():
            try:
                span = _span(pool, part)
            except ValueError as error:
                problems.append(Finding(f"pool {pool}: {part} names no addresses", str(error),
                                        "write 192.168.56.200-192.168.56.220 or 192.168.56.240/28"))
                continue
            taken = next((f"{what} {network}" for network, what in used.items()
                          if span.meets(ipaddress.ip_network(network, strict=False))), "")
            taken = taken or next((f"pool {s.pool} {s}" for s in spans if s.first in span or s.last in span
                                   or span.first in s), "")
            if taken:
                problems.append(Finding(f"pool {pool}: {span} collides with {taken}",
                                        "an address must have one meaning", "give addresses that nobody uses"))
            else:
                spans.append(span)
    return spans, problems


def _span(pool: str, text: str) -> Span:
    if "/" in text:
        network = ipaddress.ip_network(text)
        hosts = 1 if network.version == 4 and network.prefixlen < 31 else 0
        first, last = network.network_address + hosts, network.broadcast_address - hosts
    else:
        low, dash, high = text.partition("-")
        first, last = ipaddress.ip_address(low), ipaddress.ip_address(high if dash else low)
    if first.version != last.version or int(first) > int(last):
        raise ValueError("the last address comes before the first")
    if int(last) - int(first) >= MOST:
        raise ValueError(f"a pool has at most {MOST} addresses")
    return Span(pool, first, last)


def addresses(service: Obj) -> list[Address]:
    """What its status says."""
    ingress = ((service.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ()
    return [ipaddress.ip_address(entry["ip"]) for entry in ingress if entry.get("ip")]


class Lab:
    """The provider; see `provider.Balancers`."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self.spans = list(spans)

    def handles(self, service: Obj) -> bool:
        spec = service.get("spec") or {}
        return bool(self.spans) and spec.get("type") == "LoadBalancer" and spec.get("loadBalancerClass", CLASS) == CLASS

    def ensure(self, service: Obj, others: Iterable[Obj]) -> list[Obj]:
        taken = {address for other in others for address in addresses(other)}
        spec, held = service["spec"], addresses(service)
        pool = (service["metadata"].get("annotations") or {}).get(POOL)
        spans = [span for span in self.spans if pool in (None, span.pool)]
        families = spec.get("ipFamilies") or ["IPv4"]
        asked = _asked(spec.get("loadBalancerIP") or "", families, spans, taken)
        found = []
        for version in (6 if family == "IPv6" else 4 for family in families):
            if asked is not None and asked.version == version:
                found.append(asked)
                continue
            free = (a for span in spans if span.first.version == version for a in span if a not in taken)
            kept = (a for a in held if a.version == version and a not in taken and any(a in span for span in spans))
            chosen = next(kept, None) or next(free, None)
            if chosen is not None:
                found.append(chosen)
        if not found:
            name = f"{service['metadata']['namespace']}/{service['metadata']['name']}"
            because = (f"there is no pool {pool}" if pool and not spans else
                       f"the pools {', '.join(str(s) for s in spans)} have no free {' or '.join(families)} address")
            raise Finding(f"no address left for the load balancer of {name}", because,
                          f"add addresses to the ConfigMap {'/'.join(CONFIG)}")
        return [{"ip": str(address), "ipMode": "VIP"} for address in found]


def _asked(text: str, families: Collection[str], spans: Iterable[Span], taken: Collection[Address]) -> Address | None:
    """The address that `spec.loadBalancerIP` asks for, if any. Raises Finding when it cannot be given."""
    if not text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        because = "it is no IP address"
    else:
        because = (f"the Service has no IPv{address.version} addresses" if f"IPv{address.version}" not in families
                   else "another Service has it" if address in taken
                   else "" if any(address in span for span in spans) else "no pool it may use has it")
        if not because:
            return address
    raise Finding(f"{text} cannot be given out", because, "leave spec.loadBalancerIP empty, or choose a free address")
