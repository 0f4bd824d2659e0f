"""Storage drivers on this node: who is registered, where each listens, and what the API is told of them.

Owns the list of drivers and this node's CSINode. Promises that a driver is told to the API before volumes ask for it,
and is listed no more when it has gone. Called by `registry`, and by `csi` for sockets.

Upstream: pkg/volume/csi/nodeinfomanager.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import grpc.aio

from agent.kubelet.registry import CALL_SECONDS, QUIET_SECONDS, RETRY_SECONDS, Spawn
from controlplane.client.rest import Client
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from cri_proto.client import Plugin, describe
from cri_proto.messages import csi

log = logging.getLogger(__name__)
NODES, CSI_NODES = named("nodes"), named("csinodes.storage.k8s.io")
UNNAMED_SECONDS = 1.0  # between looks while this node is not registered
ANNOTATION = "csi.volume.kubernetes.io/nodeid"
KIND = "CSIPlugin"
Object = dict[str, Any]


class StorageDrivers:
    """`owner()` is the owner reference of this node, None before it is registered."""

    def __init__(self, node: str, client: Client, owner: Callable[[], Object | None]) -> None:
        self._node, self._client, self._owner = node, client, owner
        self._sockets: dict[str, str] = {}  # driver name -> where it listens
        self._entries: dict[str, Object] = {}  # driver name -> its entry in the CSINode
        self._told = False  # whether the API has just these entries

    def socket(self, driver: str) -> str | None:
        """Where a driver listens; None when it is not here."""
        return self._sockets.get(driver)

    async def left(self, name: str, spawn: Spawn) -> None:
        """A driver has gone: `tend` tells, unless it is back before."""
        self._sockets.pop(name, None)
        self._entries.pop(name, None)
        self._told = False

    async def tend(self) -> float:
        """Tell the API what it does not know yet; seconds until that is tried again."""
        if self._owner() is None:
            return UNNAMED_SECONDS
        self._told = self._told or await self._tell()
        return QUIET_SECONDS if self._told else RETRY_SECONDS

    async def take(self, info: Any, endpoint: str, spawn: Spawn) -> str:
        """List a driver; why not, "" when it is."""
        name = info.name
        try:
            async with Plugin(endpoint) as plugin:
                node = await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"error when getting driver info: {describe(error)}"
        topology = dict(node.accessible_topology.segments)
        entry: Object = {"name": name, "nodeID": node.node_id, "topologyKeys": sorted(topology)}
        if node.max_volumes_per_node > 0:
            entry["allocatable"] = {"count": node.max_volumes_per_node}
        self._entries[name] = entry
        if not await self._tell(topology):
            self._entries.pop(name)
            return "the API server could not be told"
        self._sockets[name] = endpoint
        return ""

    async def _tell(self, topology: dict[str, str] | None = None) -> bool:
        """The CSINode, and what the Node carries of the drivers; whether the API took it."""
        owner = self._owner()
        if owner is None:
            return False
        wanted = [self._entries[name] for name in sorted(self._entries)]
        try:
            try:
                found = await self._client.get(CSI_NODES, self._node)
            except NotFound:
                found = await self._client.create(CSI_NODES, {
                    "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "spec": {"drivers": wanted},
                    "metadata": {"name": self._node, "ownerReferences": [
                        {k: v for k, v in owner.items() if k != "controller"}]}})
            if (found["spec"].get("drivers") or []) != wanted:
                await self._client.update(CSI_NODES, {**found, "spec": {**found["spec"], "drivers": wanted}})
            if topology is not None:
                await self._label(topology)
        except ApiError as error:  # also somebody else's write in between: the next look tries again
            log.warning("cannot tell the API of storage drivers: %s", error.message)
            return False
        return True

    async def _label(self, topology: dict[str, str]) -> None:
        import orjson
        ids = {name: entry["nodeID"] for name, entry in self._entries.items()}
        await self._client.patch(NODES, self._node, {"metadata": {
            "annotations": {ANNOTATION: orjson.dumps(ids, option=orjson.OPT_SORT_KEYS).decode()}, "labels": topology}})
