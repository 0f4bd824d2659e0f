"""Storage drivers on this node: heard of by the socket each puts into the plugin folder, told to the API.

Owns the folder `plugins_registry`, the list of drivers and this node's CSINode. Promises that a driver is asked who it
is before it is listed, that it learns whether it is registered, and that one whose socket goes is no longer listed. The
drivers of ResourceClaims come to the same folder and are listed too. Sleeps until the folder changes. Run by the agent;
`csi` and `devices.claims` ask it for sockets.

Upstream: pkg/kubelet/pluginmanager and pkg/volume/csi/nodeinfomanager.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio

from agent.kubelet.directory import Directory
from controlplane.client.rest import Client
from controlplane.machinery.clock import SYSTEM, Clock
from controlplane.machinery.errors import ApiError, NotFound
from controlplane.machinery.resources import named
from cri_proto.client import Plugin, describe
from cri_proto.messages import csi, registration
from netsetup.ledger import Ledger

log = logging.getLogger(__name__)
NODES, CSI_NODES = named("nodes"), named("csinodes.storage.k8s.io")
SLICES = named("resourceslices.resource.k8s.io")
UNTOLD = -1.0  # in place of the time a socket was made: its plugin does not know yet that it is listed
CALL_SECONDS = 10.0  # a driver that says nothing for longer is asked again
RETRY_SECONDS = 10.0
QUIET_SECONDS = 3600.0  # the folder is looked at this often without any news, in case some were lost
WIPE_SECONDS = 30.0  # upstream's: a driver that is only replaced is back by then
ANNOTATION = "csi.volume.kubernetes.io/nodeid"
KIND, CLAIMS_KIND, CLAIMS_SERVICE = "CSIPlugin", "DRAPlugin", "v1.DRAPlugin"
Object = dict[str, Any]


def home(root: Path, usual: Path, ledger: Ledger) -> Path:
    """The kubelet's folder as drivers know it: `usual`, which becomes a link to `root` when nothing is there, for the
    manifests of drivers name it; else `root` itself."""
    try:
        if not os.path.lexists(usual):
            ledger.make_directory(usual.parent)
            ledger.record("symlink", path=usual)
            usual.symlink_to(root)
    except OSError as error:
        log.warning("storage drivers that look for the kubelet at %s will not find it: %s", usual, error)
    return usual if usual.is_symlink() and usual.resolve() == root.resolve() else root


class Drivers:
    """`owner()` is the owner reference of this node, None before it is registered."""

    def __init__(self, root: Path, node: str, client: Client, owner: Callable[[], Object | None],
                 clock: Clock = SYSTEM) -> None:
        self._folder, self._node, self._client = root / "plugins_registry", node, client
        self._owner, self._clock = owner, clock
        self._sockets: dict[str, str] = {}  # driver name -> where it listens
        self._claim_sockets: dict[str, str] = {}  # driver of ResourceClaims -> where it listens
        self._left: dict[str, float] = {}  # driver of ResourceClaims that has gone -> when what it offers goes too
        self._known: dict[Path, tuple[str, float]] = {}  # registrar's socket -> driver name, when it was made
        self._told: dict[str, Object] = {}  # driver name -> its entry in the CSINode

    def socket(self, driver: str) -> str | None:
        return self._sockets.get(driver)

    def claim_socket(self, driver: str) -> str | None:
        return self._claim_sockets.get(driver)

    async def run(self) -> None:
        """Until cancelled."""
        with Directory(self._folder) as changes:
            told = False
            while True:
                fine = await self._look()
                if not told and self._owner() is not None:
                    told = fine = await self._tell() and fine
                fine = await self._wipe() and fine
                pause = QUIET_SECONDS if fine and told else RETRY_SECONDS if self._owner() else 1.0
                await changes.wait(min([pause, *(max(0.0, due - self._clock.monotonic())
                                                 for due in self._left.values())]))

    async def _look(self) -> bool:
        """Bring the list up to the folder; whether everything went well."""
        present = {p: p.lstat().st_mtime for p in self._folder.iterdir()
                   if not p.name.startswith(".") and stat.S_ISSOCK(p.lstat().st_mode)}
        for path in [p for p, (_, made) in self._known.items() if present.get(p) != made]:
            name, _ = self._known.pop(path)
            self._sockets.pop(name, None)
            if self._claim_sockets.pop(name, None) is not None:
                self._left[name] = self._clock.monotonic() + WIPE_SECONDS
            self._told.pop(name, None)
            if path not in present:
                log.info("driver %s has left", name)
                await self._tell()
        fine = True
        for path, made in present.items():
            if path not in self._known:
                fine = await self._register(path, made) and fine
        return fine

    async def _register(self, path: Path, made: float) -> bool:
        """Make the acquaintance of the plugin behind a registrar's socket."""
        try:
            async with Plugin(path) as registrar:
                info = await registrar.registration.GetInfo(registration.InfoRequest(), timeout=CALL_SECONDS)
                if info.type not in (KIND, CLAIMS_KIND):
                    self._known[path] = (info.name, made)
                    return True
                if info.type == KIND:
                    problem = await self._take(info.name, info.endpoint or str(path))
                else:
                    problem = self._take_claims(info, str(path))
                if not problem:
                    self._known[path] = (info.name, UNTOLD)
                await registrar.registration.NotifyRegistrationStatus(registration.RegistrationStatus(
                    plugin_registered=not problem, error=problem), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            log.warning("plugin at %s: %s", path, describe(error))
            return False
        if problem:
            log.warning("driver %s: %s", info.name, problem)
            return False
        self._known[path] = (info.name, made)
        log.info("driver %s is registered", info.name)
        return True

    def _take_claims(self, info: Any, path: str) -> str:
        """List a driver of ResourceClaims; why not, "" when it is."""
        if CLAIMS_SERVICE not in info.supported_versions:
            return f"none of the services {list(info.supported_versions)} is {CLAIMS_SERVICE}"
        self._claim_sockets[info.name] = info.endpoint or path
        self._left.pop(info.name, None)
        return ""

    async def _wipe(self) -> bool:
        """Take back what drivers that are gone offer on this node, or pods would be sent to it; whether that went
        well."""
        for driver in [d for d, due in self._left.items() if due <= self._clock.monotonic()]:
            del self._left[driver]
            try:
                await self._client.delete_collection(SLICES, fields=f"spec.driver={driver},spec.nodeName={self._node}")
            except ApiError as error:
                log.warning("cannot remove the ResourceSlices of driver %s: %s", driver, error.message)
                self._left[driver] = self._clock.monotonic() + RETRY_SECONDS
                return False
        return True

    async def _take(self, name: str, endpoint: str) -> str:
        """List a driver; why not, "" when it is."""
        try:
            async with Plugin(endpoint) as plugin:
                info = await plugin.node.NodeGetInfo(csi.NodeGetInfoRequest(), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            return f"error when getting driver info: {describe(error)}"
        topology = dict(info.accessible_topology.segments)
        entry: Object = {"name": name, "nodeID": info.node_id, "topologyKeys": sorted(topology)}
        if info.max_volumes_per_node > 0:
            entry["allocatable"] = {"count": info.max_volumes_per_node}
        self._told[name] = entry
        if not await self._tell(topology):
            self._told.pop(name)
            return "the API server could not be told"
        self._sockets[name] = endpoint
        return ""

    async def _tell(self, topology: dict[str, str] | None = None) -> bool:
        """The CSINode, and what the Node carries of the drivers; whether the API took it."""
        owner = self._owner()
        if owner is None:
            return False
        wanted = [self._told[name] for name in sorted(self._told)]
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
        ids = {name: entry["nodeID"] for name, entry in self._told.items()}
        await self._client.patch(NODES, self._node, {"metadata": {
            "annotations": {ANNOTATION: orjson.dumps(ids, option=orjson.OPT_SORT_KEYS).decode()}, "labels": topology}})
