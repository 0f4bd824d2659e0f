"""Pod addresses of one node: who holds which address of the node's pod CIDR.

Owns a folder with one small file per held address, named after it. Taking an address is one atomic `link(2)`, so a
`kill -9` at any instruction leaves an address either held by its container or free. Nothing is synced to disk: after a
power cut no container lives either. Addresses are given out in a circle, starting after the last one given, so a freed
address rests as long as possible before somebody else answers on it. Asking twice for one container gives one address.

Called by the CNI daemon. Thread safe.
"""

from __future__ import annotations

import ipaddress
import json
import os
import threading
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LAST = "last"  # the file with the address given out last
RESERVED = 2  # the network's own address and the first host, which tools take for the gateway
CIRCLE = 1 << 16  # addresses of a node that are used at most: a range of IPv6 has more than could be looked through
SETTLING = 120.0  # seconds a holder may be unknown to the runtime: it lists a sandbox only after its network is made

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class ExhaustedError(Exception):
    """Every address of the node's range is held."""


@dataclass(frozen=True, slots=True)
class Holding:
    """One held address. `at`: wall seconds; `ports`: CNI portMappings as given."""

    address: str
    container: str
    interface: str
    at: float
    ports: list[dict[str, Any]] = field(default_factory=list)


class Ipam:
    """The addresses of `cidr`, kept below `folder`."""

    def __init__(self, folder: Path, cidr: str) -> None:
        self.network = ipaddress.ip_network(cidr)
        self.folder = folder / cidr.replace("/", "_")
        self._lock = threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._held: dict[str, Holding] = {}
        for path in self.folder.iterdir():
            holding = _read(path)
            if holding:
                self._held[holding.address] = holding
        try:
            self._last = int(ipaddress.ip_address((self.folder / LAST).read_text().strip()))
        except (OSError, ValueError):
            self._last = 0

    @property
    def capacity(self) -> int:
        return max(0, min(self.network.num_addresses - RESERVED - 1, CIRCLE))  # less the broadcast address

    def holdings(self) -> list[Holding]:
        with self._lock:
            return list(self._held.values())

    def of(self, container: str, interface: str) -> Holding | None:
        with self._lock:
            return self._of(container, interface)

    def take(self, container: str, interface: str, now: float, ports: list[dict[str, Any]] | None = None) -> Holding:
        """The container's address, a fresh one if it has none. Raises ExhaustedError."""
        with self._lock:
            held = self._of(container, interface)
            if held:
                return held
            first = int(self.network.network_address) + RESERVED
            start = self._last + 1 - first if first <= self._last < first + self.capacity else 0
            for step in range(self.capacity):
                address = str(self.network[RESERVED + (start + step) % self.capacity])
                if address in self._held:
                    continue
                holding = Holding(address, container, interface, now, ports or [])
                if self._claim(holding):
                    return holding
            raise ExhaustedError(f"no IP addresses available in range set: {self.network[RESERVED]}-"
                                 f"{self.network[RESERVED + self.capacity - 1]}")

    def release(self, container: str, interface: str) -> Holding | None:
        """Free the container's address; None when it has none."""
        with self._lock:
            held = self._of(container, interface)
            if held:
                (self.folder / held.address).unlink(missing_ok=True)
                del self._held[held.address]
            return held

    def stale(self, live: Collection[str], now: float) -> list[Holding]:
        """Held by containers that are not in `live`, and not just being made."""
        with self._lock:
            return [h for h in self._held.values() if h.container not in live and now - h.at >= SETTLING]

    def _of(self, container: str, interface: str) -> Holding | None:
        return next((h for h in self._held.values() if (h.container, h.interface) == (container, interface)), None)

    def _claim(self, holding: Holding) -> bool:
        staged = self.folder / f".{holding.address}"
        staged.write_text(json.dumps(asdict(holding)))
        try:
            os.link(staged, self.folder / holding.address)
        except FileExistsError:
            return False  # another process took it: its holder is told by its file, not by our memory
        finally:
            staged.unlink()
        self._held[holding.address] = holding
        self._last = int(ipaddress.ip_address(holding.address))
        (self.folder / LAST).write_text(holding.address)
        return True


def companion(address: str, own: Network, other: Network) -> str:
    """A pod's second address: as far into the node's other range as the first is into its own. Nothing to keep."""
    return str(other.network_address + (int(ipaddress.ip_address(address)) - int(own.network_address)))


def _read(path: Path) -> Holding | None:
    if path.name == LAST or path.name.startswith("."):
        return None
    try:
        return Holding(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        path.unlink(missing_ok=True)  # not one of ours: a whole file is linked into place or none
        return None
