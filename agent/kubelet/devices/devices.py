"""The devices of this node's pods behind one door: what device plugins lend, and what drivers of claims prepare.

Owns which of the two there is: nothing of either is loaded before the first plugin comes, an earlier agent's book is
found, or a pod has claims. Promises that a container is made with all its devices or not at all, and that its status
tells how they are. Called by the kubelet, its pods' workers and their steps, and by `podresources`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.kubelet.devices.drivers import ClaimDrivers
from agent.kubelet.model import ContainerSpec
from agent.kubelet.specs import Node
from controlplane.client.rest import Client
from controlplane.machinery.clock import Clock

if TYPE_CHECKING:
    from agent.kubelet.devices.claims import ClaimDevices
    from agent.kubelet.devices.manager import DeviceManager

FOLDER, BOOK = "device-plugins", "devices.json"
Object = dict[str, Any]


class Devices:
    """`changed(uids)` is called when what the node has is not what it was, with the pods concerned."""

    def __init__(self, node: Node, client: Client, clock: Clock) -> None:
        self._node, self._client, self._clock = node, client, clock
        self.changed: Callable[[set[str]], None] = lambda uids: None
        self.folder = node.root / FOLDER
        self.drivers = ClaimDrivers(node.name, client, clock, self._of_driver)
        self.lent: DeviceManager | None = None  # once a device plugin has come
        self._claims: ClaimDevices | None = None
        if (self.folder / BOOK).exists():  # before any pod is looked at: what was lent stays lent
            self.manager()

    def manager(self) -> DeviceManager:
        """Who lends the devices of plugins."""
        if self.lent is None:
            from agent.kubelet.devices.manager import DeviceManager
            self.lent = DeviceManager(self.folder / BOOK, self._clock, lambda uids: self.changed(uids),
                                      cdi=self._node.cdi)
        return self.lent

    def claims(self) -> ClaimDevices:
        """Who has those of claims prepared."""
        if self._claims is None:
            from agent.kubelet.devices.claims import ClaimDevices
            self._claims = ClaimDevices(self._client, self._node.root / "pods", self.drivers, cdi=self._node.cdi)
        return self._claims

    def _of_driver(self, driver: str) -> None:
        if self._claims is not None:
            self.changed(self._claims.holders(driver))

    def amounts(self) -> dict[str, tuple[int, int]]:
        """How many devices of plugins there are, and how many of them are healthy, by resource."""
        return self.lent.book.amounts() if self.lent is not None else {}

    async def admit(self, pod: Object, alive: Callable[[str], bool]) -> tuple[str, str] | None:
        """Lend the pod's containers what they ask for; else the reason and message of its failure."""
        return await self.lent.admit(pod, alive) if self.lent is not None else None

    async def fitted(self, made: ContainerSpec, pod: Object, container: Object) -> ContainerSpec:
        """The container with all its devices. Raises ConfigError or ApiError."""
        if claiming(pod):
            made = await self.claims().fitted(made, pod, container)
        return await self.lent.fitted(made, pod["metadata"]["uid"]) if self.lent is not None else made

    def told(self, pod: Object) -> dict[str, list[Object]]:
        """`allocatedResourcesStatus` of each container of the pod that has devices."""
        found = self.lent.book.health(pod["metadata"]["uid"]) if self.lent is not None else {}
        if claiming(pod):
            for name, entries in self.claims().told(pod).items():
                found[name] = [*found.get(name, ()), *entries]
        return found

    async def release(self, uid: str) -> None:
        """Give the claims of a pod that runs no more back to their drivers. Raises ConfigError."""
        if self._node.claims_file(uid).exists():
            await self.claims().release(uid)


def claiming(pod: Object) -> bool:
    """Whether the pod has claims, its own or the one for its extended resources."""
    return bool(pod["spec"].get("resourceClaims") or (pod.get("status") or {}).get("extendedResourceClaimStatus"))
