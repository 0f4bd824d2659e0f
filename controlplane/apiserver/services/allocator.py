"""Addresses and ports of Services: given out once, taken back when the Service goes.

Owns the two pools (cluster IPs, node ports). They are memory only: at start they are filled from the stored Services,
which are the truth, so that no leak and no double use survives a restart. `assign` completes a Service and returns a
`Lease`, which the writer must `commit` once the Service is stored or `release` when it was refused. Addresses outside
the first band are given out first: low ones are what people choose by hand. Called by the verbs that write.

Upstream: k8s.io/kubernetes/pkg/registry/core/service/{allocator,ipallocator,portallocator,storage/alloc.go}.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.apiserver.services.servicefamilies import family_of, settle
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import Cause, InternalError, Invalid, invalid

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
ADDRESSES_MAX = 1 << 20  # of one range: a full pool is walked, and no cluster has more Services
PROBES = 64  # random tries before a pool is walked in order: enough unless it is nearly full
BAND_MIN, BAND_MAX, BAND_STEP = 16, 256, 16  # upstream's: the band is a sixteenth of the range, within these bounds


class Full(Exception):  # noqa: N818
    """Nothing is left in the pool."""


class Pool:
    """Distinct integers of [first, last]; automatic ones come from behind `band` first."""

    def __init__(self, first: int, last: int, clock: Clock, band: int = 0) -> None:
        self.first, self.last = first, last
        self._split = min(first + band, last)
        self._clock = clock
        self.used: set[int] = set()
        self.reserved: set[int] = set()  # never given out nor free, whoever holds them
        self.others: set[int] = set()  # taken by somebody who is no Service
        self.more: tuple[tuple[int, int], ...] = ()  # further ranges, both ends included: given out when all else is

    def contains(self, value: int) -> bool:
        return self.first <= value <= self.last or any(low <= value <= high for low, high in self.more)

    def take(self, value: int) -> bool:
        """Claim one value; False when it is in use."""
        if value in self.used or value in self.reserved or value in self.others:
            return False
        self.used.add(value)
        return True

    def next(self) -> int:
        """Claim any free value. Raises Full."""
        for low, high in ((self._split, self.last), (self.first, self._split), *self.more):
            for _ in range(PROBES):
                value = self._clock.random.randint(low, high)
                if self.take(value):
                    return value
            for value in range(low, high + 1):
                if self.take(value):
                    return value
        raise Full

    def give_back(self, value: int) -> None:
        self.used.discard(value)


@dataclass(slots=True)
class Lease:
    """What one write claimed, and what it makes free once it is stored."""

    pools: Allocator
    taken: list[tuple[Pool, int]] = field(default_factory=list)
    freed: list[tuple[Pool, int]] = field(default_factory=list)

    def commit(self) -> None:
        for pool, value in self.freed:
            pool.give_back(value)

    def release(self) -> None:
        for pool, value in self.taken:
            pool.give_back(value)


class Allocator:
    """The pools of one cluster."""

    def __init__(self, networks: Network | Sequence[Network], ports: tuple[int, int], clock: Clock) -> None:
        """`networks`: the services' ranges, at most one of each family; the first gives the default family."""
        given = list(networks) if isinstance(networks, Sequence) else [networks]
        self.networks = {f"IPv{n.version}": n for n in given}
        self.pools = {family: _pool(network, clock) for family, network in self.networks.items()}
        self.addresses = next(iter(self.pools.values()))
        self.addresses.reserved.add(self.addresses.first)  # default/kubernetes
        self.ports = Pool(ports[0], ports[1], clock)

    def restore(self, services: Iterable[dict[str, Any]]) -> list[str]:
        """Fill the pools from what is stored; what two Services hold is returned as sentences for the log."""
        problems = []
        for service in services:
            for pool, value in self._held(service):
                if value not in pool.reserved and not pool.take(value):
                    where = f"{service['metadata'].get('namespace')}/{service['metadata'].get('name')}"
                    shown = str(value) if pool is self.ports else _shown(self._family(pool), value)
                    problems.append(f"Service {where} holds {shown}, which another Service holds too; recreate one")
        return problems

    def mark(self, address: str, taken: bool) -> None:
        """Somebody who is no Service has taken an address, or let go of it."""
        pool, value = self.pools.get(family_of(address)), _address(address)
        if pool is not None and value is not None:
            (pool.others.add if taken else pool.others.discard)(value)

    def _held(self, service: dict[str, Any]) -> set[tuple[Pool, int]]:
        """All it has, also what is in no range any more: the range may come back."""
        spec = service.get("spec") or {}
        held = set()
        for text in {spec.get("clusterIP"), *(spec.get("clusterIPs") or [])} - {None, "", "None"}:
            pool, value = self.pools.get(family_of(str(text))), _address(str(text))
            if pool is not None and value is not None:
                held.add((pool, value))
        numbers = [port.get("nodePort") for port in spec.get("ports") or []] + [spec.get("healthCheckNodePort")]
        return held | {(self.ports, n) for n in numbers if n}

    def drop(self, service: dict[str, Any]) -> None:
        """The Service is gone: everything it held is free."""
        for pool, value in self._held(service):
            pool.give_back(value)

    def assign(self, service: dict[str, Any], old: dict[str, Any] | None) -> Lease:
        """Complete a Service in place: validate and claim what it asks for, choose what it leaves open.

        Raises Invalid (with nothing claimed)."""
        lease = Lease(self)
        held = self._held(old) if old is not None else set()
        try:
            self._assign_addresses(service, old, lease)
            self._assign_ports(service, lease, held)
        except BaseException:
            lease.release()
            raise
        lease.freed = list(held - self._held(service))
        return lease

    def _assign_addresses(self, service: dict[str, Any], old: dict[str, Any] | None, lease: Lease) -> None:
        """One address of each family the Service has; those it names are claimed, the others chosen."""
        spec: dict[str, Any] = service.setdefault("spec", {})
        if spec.get("type") == "ExternalName":
            return
        asked = list(spec.get("clusterIPs") or [spec.get("clusterIP") or ""])
        spec["clusterIPs"] = [address for address in asked if address]
        if causes := settle(service, old, tuple(self.pools)):
            raise Invalid.of("Service", (service.get("metadata") or {}).get("name") or "", causes)
        if asked[0] == "None":
            spec["clusterIP"], spec["clusterIPs"] = "None", ["None"]
            return
        kept = ((old or {}).get("spec") or {}).get("clusterIPs") or ()
        given = spec["clusterIPs"]
        for index, address in enumerate(given):
            if address not in kept:  # what it holds it keeps, also when its range has gone since
                self._claim_address(service, index, address, lease)
        for family in spec["ipFamilies"][len(given):]:
            given.append(self._next_address(family, lease))
        spec["clusterIP"] = given[0]

    def _next_address(self, family: str, lease: Lease) -> str:
        pool = self.pools.get(family)
        if pool is None:  # a Service from when the cluster had this family
            raise InternalError.of(f"failed to allocate a serviceIP: no range of {family}")
        try:
            value = pool.next()
        except Full:
            raise InternalError.of("failed to allocate a serviceIP: range is full") from None
        lease.taken.append((pool, value))
        return _shown(family, value)

    def _claim_address(self, service: dict[str, Any], index: int, address: str, lease: Lease) -> None:
        family, value = family_of(address), _address(address)
        pool = self.pools.get(family)
        if pool is None or value is None or not pool.contains(value):
            raise _refused(service, invalid(
                "spec.clusterIPs", service["spec"]["clusterIPs"][:1] if index == 0 else address,
                "failed to allocate IP " + address + ": the provided IP (" + address +
                f") is not in the valid range. The range of valid IPs is {self.networks.get(family, 'none')}"))
        if not pool.take(value):
            raise _refused(service, invalid("spec.clusterIPs", [address],
                                            f"failed to allocate IP {address}: provided IP is already allocated"))
        lease.taken.append((pool, value))

    def _family(self, pool: Pool) -> str:
        return next(family for family, known in self.pools.items() if known is pool)

    def _assign_ports(self, service: dict[str, Any], lease: Lease, held: set[tuple[Pool, int]]) -> None:
        spec = service["spec"]
        wants = spec.get("type") == "NodePort" or (
            spec.get("type") == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False)
        ports = spec.get("ports") or []
        asked: dict[int, str] = {}  # a number may serve TCP and UDP of one Service
        for index, port in enumerate(ports):
            number = port.get("nodePort")
            if number:
                first = number not in asked
                asked[number] = str(port.get("protocol") or "TCP")
                if first:
                    self._claim_port(service, f"spec.ports[{index}].nodePort", number, lease, held)
        shared: dict[int, int] = {}  # port -> node port, so that one port's protocols share a number
        for port in ports:
            if not wants or port.get("nodePort"):
                continue
            number = shared.get(port.get("port"))
            if number is None:
                number = self._next_port(lease)
                shared[port.get("port")] = number
            port["nodePort"] = number
        if spec.get("type") == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
            number = spec.get("healthCheckNodePort")
            if number:
                self._claim_port(service, "spec.healthCheckNodePort", number, lease, held)
            else:
                spec["healthCheckNodePort"] = self._next_port(lease)

    def _next_port(self, lease: Lease) -> int:
        try:
            number = self.ports.next()
        except Full:
            raise InternalError.of("failed to allocate a nodePort: range is full") from None
        lease.taken.append((self.ports, number))
        return number

    def _claim_port(self, service: dict[str, Any], path: str, number: int, lease: Lease,
                    held: set[tuple[Pool, int]]) -> None:
        if (self.ports, number) in held:
            return
        if not self.ports.contains(number):
            raise _refused(service, invalid(path, number, "provided port is not in the valid range. The range of valid "
                                            f"ports is {self.ports.first}-{self.ports.last}"))
        if not self.ports.take(number):
            raise _refused(service, invalid(path, number, "provided port is already allocated"))
        lease.taken.append((self.ports, number))


def _band(size: int) -> int:
    return min(max(BAND_MIN, size // BAND_STEP), BAND_MAX) if size > BAND_MIN else 0


def _pool(network: Network, clock: Clock) -> Pool:
    """The first address is the network's own; of IPv4 the last one too. Of a vast range the beginning is enough."""
    size = min(network.num_addresses, ADDRESSES_MAX)
    first = int(network.network_address) + 1
    return Pool(first, first + size - (3 if network.version == 4 and size == network.num_addresses else 2), clock,
                _band(size))


def _shown(family: str, value: int) -> str:
    return str(ipaddress.IPv6Address(value) if family == "IPv6" else ipaddress.IPv4Address(value))


def _address(text: str) -> int | None:
    try:
        return int(ipaddress.ip_address(text))
    except ValueError:
        return None


def _refused(service: dict[str, Any], cause: Cause) -> Invalid:
    return Invalid.of("Service", (service.get("metadata") or {}).get("name") or "", [cause])
