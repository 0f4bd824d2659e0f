"""The provisioner of `local-path`: a folder of a node for every claim, so that stateful applications run as installed.

Owns the volumes it made: it asks the claim's node for a folder, then records the volume, and takes both back when the
claim is gone and the policy says Delete. Promises that a folder is only removed for a volume nobody is bound to, by the
node that has it, and that its StorageClass exists but stays as people change it. Never touches a disk itself.
Called by `manager`.
"""

from __future__ import annotations

from typing import Any

import orjson

from controlplane.controllers.runtime import NODES, Context, Controller, delete_quietly, drop_finalizer
from controlplane.controllers.volumes import localvolumes, matching
from controlplane.controllers.volumes.volumebinder import CLAIMS, CLASSES, VOLUMES
from controlplane.machinery import objects
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound

CLASS = "class"  # the key of the StorageClass

Obj = dict[str, Any]


class LocalPath(Controller):
    """Keys are ("claim", namespace, name), ("volume", "", name) and CLASS."""

    name = localvolumes.PROVISIONER

    def __init__(self, context: Context) -> None:
        self.claims, self.volumes = context.informer(CLAIMS), context.informer(VOLUMES)
        self.classes, self.nodes = context.informer(CLASSES), context.informer(NODES)
        super().__init__(context, self.claims, self.volumes, self.classes, self.nodes)
        self.claims.subscribe(self._claim_changed)
        self.volumes.subscribe(self._volume_changed)
        self.classes.subscribe(lambda kind, old, new: self.queue.add(CLASS) if kind == "DELETED" else None)
        self.queue.add(CLASS)

    def _claim_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and localvolumes.wanted(new):
            self.queue.add(("claim", *objects.key(new)))

    def _volume_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and localvolumes.ours(new) and localvolumes.unused(new):
            self.queue.add(("volume", *objects.key(new)))

    async def reconcile(self, key: Any) -> float | None:
        if key == CLASS:
            await self._keep_class()
        elif key[0] == "claim":
            claim = self.claims.get(*key[1:])
            if claim is not None and localvolumes.wanted(claim):
                await self._provision(claim)
        else:
            volume = self.volumes.get(*key[1:])
            if volume is not None and localvolumes.unused(volume):
                await self._take_back(volume)
        return None

    async def _keep_class(self) -> None:
        if self.classes.get("", localvolumes.CLASS) is None:
            wanted = localvolumes.storage_class()
            if matching.default_class(self.classes.items()) is not None:
                wanted["metadata"]["annotations"] = {}  # there is a default already: it stays the only one
            try:
                await self.client.create(CLASSES, wanted)
            except AlreadyExists:
                pass

    # --- making ------------------------------------------------------------------------------------------------

    async def _provision(self, claim: Obj) -> None:
        made_by = self.classes.get("", matching.class_of(claim))
        node = self._node_for(claim, made_by)
        if made_by is None or (node is None and not objects.annotations(claim).get(matching.SELECTED_NODE)):
            return  # the scheduler has not chosen yet
        if why := localvolumes.refusal(claim):
            self.recorder.event(claim, "Warning", "ProvisioningFailed", why)
            return
        if node is None:
            await self._choose_again(claim)
            return
        self.recorder.event(claim, "Normal", "Provisioning", "External provisioner is provisioning volume for claim "
                            f'"{objects.namespace(claim)}/{objects.name(claim)}"')
        try:
            path = await self._folder("PUT", objects.name(node), localvolumes.name_of(claim))
            wanted = localvolumes.volume(claim, made_by, node, path)
            await self.client.create(VOLUMES, wanted)
        except AlreadyExists:
            return
        except ApiError as error:
            self.recorder.event(claim, "Warning", "ProvisioningFailed", f'failed to provision volume with StorageClass '
                                f'"{objects.name(made_by)}": {error.message}')
            raise
        self.recorder.event(claim, "Normal", "ProvisioningSucceeded",
                            f"Successfully provisioned volume {objects.name(wanted)}")

    def _node_for(self, claim: Obj, made_by: Obj | None) -> Obj | None:
        """The node the scheduler chose; for a class that binds at once any node that works, the first by name."""
        if chosen := objects.annotations(claim).get(matching.SELECTED_NODE):
            return self.nodes.get("", chosen)
        if made_by is None or matching.waits_for_pod(made_by):
            return None
        fit = [node for node in self.nodes.items()
               if not objects.get(node, "spec.unschedulable") and objects.holds(node, "Ready")]
        return min(fit, key=objects.name, default=None)

    async def _choose_again(self, claim: Obj) -> None:
        """The chosen node is gone: the scheduler shall choose another."""
        notes = {key: value for key, value in objects.annotations(claim).items() if key != matching.SELECTED_NODE}
        await self.client.update(CLAIMS, {**claim, "metadata": {**claim["metadata"], "annotations": notes}})

    # --- taking back -------------------------------------------------------------------------------------------

    async def _take_back(self, volume: Obj) -> None:
        live = await self._live(volume)
        if live is None or not localvolumes.unused(live):
            return
        if objects.get(live, "spec.persistentVolumeReclaimPolicy") != "Delete":
            if objects.deleting(live):  # the data stays, as its policy says; the record may go
                await drop_finalizer(self.client, VOLUMES, live, localvolumes.FINALIZER)
            return
        if self.nodes.get("", localvolumes.node_of(live)) is not None:
            try:
                await self._folder("DELETE", localvolumes.node_of(live), objects.name(live))
            except ApiError as error:
                self.recorder.event(live, "Warning", "VolumeFailedDelete", error.message)
                raise
        await drop_finalizer(self.client, VOLUMES, live, localvolumes.FINALIZER)
        await delete_quietly(self.client, VOLUMES, live)

    async def _live(self, volume: Obj) -> Obj | None:
        """The volume by the server's word, if it still is the same one."""
        try:
            live = await self.client.get(VOLUMES, objects.name(volume))
        except NotFound:
            return None
        return live if objects.uid(live) == objects.uid(volume) else None

    async def _folder(self, method: str, node: str, name: str) -> str:
        """Have the node make (PUT) or remove (DELETE) the folder of a volume; its path there."""
        body = await self.client.raw(method, f"/api/v1/nodes/{node}/proxy/localVolumes/{name}")
        return str(orjson.loads(body)["path"])
