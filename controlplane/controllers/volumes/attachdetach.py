"""Has volumes of CSI drivers attached to the nodes whose pods use them, and detached when they are done.

Runs `attachments`' facts per node. Promises that a volume one node may have at a time is asked for on a second node
only when the first has let it go, that nothing is detached while its kubelet says it is mounted, and that attachments
others made are left alone. Does nothing while no volume is of a CSI driver. Called by `manager`.

Upstream: pkg/controller/volume/attachdetach.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.nodes.lifecycle import by_node
from controlplane.controllers.runtime import NODES, PODS, STALE_SECONDS, Context, Controller, delete_quietly
from controlplane.controllers.volumes import attachments
from controlplane.controllers.volumes.volumebinder import CLAIMS, VOLUMES
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import AlreadyExists, ApiError
from controlplane.machinery.resources import named

Obj = dict[str, Any]


def of_node(attachment: Obj) -> list[str]:
    return [objects.get(attachment, "spec.nodeName", "")]


def of_volume(attachment: Obj) -> list[str]:
    return [objects.get(attachment, "spec.source.persistentVolumeName", "")]


class AttachDetach(Controller):
    """Keys are node names."""

    name = "attachdetach-controller"

    def __init__(self, context: Context) -> None:
        self.pods, self.nodes = context.informer(PODS, node=by_node), context.informer(NODES)
        self.claims, self.volumes = context.informer(CLAIMS), context.informer(VOLUMES)
        self.drivers = context.informer(named("csidrivers.storage.k8s.io"))
        self.attachments = context.informer(named("volumeattachments.storage.k8s.io"), node=of_node, volume=of_volume)
        self._asked: dict[str, str] = {}  # volume -> node, of attachments we made and may not have seen yet
        super().__init__(context, self.pods, self.nodes, self.claims, self.volumes, self.drivers, self.attachments)
        self.pods.subscribe(self._pod_changed)
        self.nodes.subscribe(self._node_changed)
        self.attachments.subscribe(self._attachment_changed)
        self.claims.subscribe(self._claim_changed)

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if (node := objects.get(new, "spec.nodeName")) and podfacts.claim_names(new):
            self.queue.add(node)

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        def seen(node: Obj) -> tuple[Any, ...]:
            return objects.get(node, "status.volumesInUse"), objects.get(node, "spec.taints")
        if self.attachments.by("node", objects.name(new)) and (old is None or seen(old) != seen(new)):
            self.queue.add(objects.name(new))

    def _attachment_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        self.queue.add(of_node(new)[0])
        self._asked.pop(of_volume(new)[0], None)
        if kind == "DELETED":  # whoever waits for the volume may have it now
            for claim in self.claims.items():
                if objects.get(claim, "spec.volumeName") == of_volume(new)[0]:
                    self._claim_changed("MODIFIED", None, claim)

    def _claim_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        """A bound claim's pods may have been placed before it was bound."""
        volume = self.volumes.get("", objects.get(new, "spec.volumeName", ""))
        if volume is None or objects.get(volume, "spec.csi") is None:
            return
        for pod in self.pods.items():
            if objects.namespace(pod) == objects.namespace(new) and objects.get(pod, "spec.nodeName") \
                    and objects.name(new) in dict(podfacts.claim_names(pod)):
                self.queue.add(objects.get(pod, "spec.nodeName"))

    def _volume_of(self, namespace: str, name: str) -> Obj | None:
        claim = self.claims.get(namespace, name)
        if claim is None or objects.get(claim, "status.phase") != "Bound":
            return None
        return self.volumes.get("", objects.get(claim, "spec.volumeName", ""))

    async def reconcile(self, name: str) -> float | None:
        if not self.pending.settled(name, self.attachments):
            return STALE_SECONDS
        wanted = attachments.wanted(name, self.pods.by("node", name), self._volume_of,
                                    lambda driver: self.drivers.get("", driver))
        present = {objects.name(one): one for one in self.attachments.by("node", name)}
        for one, pod in wanted.values():
            if one.name not in present and not self._elsewhere(one, pod):
                await self._attach(name, one)
        node = self.nodes.get("", name)
        for have in present.values():
            idle = objects.name(have) not in wanted and attachments.ours(have) and not objects.deleting(have)
            if idle and not self._in_use(node, have) and await delete_quietly(self.client, self.attachments.resource,
                                                                              have):
                self.pending.deleted(name, have)
        if node is not None:
            await self._tell_node(node, list(present.values()), wanted)
        return None

    def _in_use(self, node: Obj | None, one: Obj) -> bool:
        return node is not None and attachments.in_use(node, one, self.volumes.get("", of_volume(one)[0]))

    def _elsewhere(self, one: attachments.Attachment, pod: Obj) -> bool:
        """Whether another node has a volume that only one may have; the pod is told."""
        nodes = {of_node(other)[0] for other in self.attachments.by("volume", one.volume)}
        nodes |= {self._asked[one.volume]} if one.volume in self._asked else set()
        if not one.single or nodes <= {one.node}:
            return False
        self.recorder.event(pod, "Warning", "FailedAttachVolume", f'Multi-Attach error for volume "{one.volume}" '
                            f"Volume is already exclusively attached to one node and can't be attached to another")
        return True

    async def _attach(self, key: str, one: attachments.Attachment) -> None:
        self._asked[one.volume] = one.node  # before the write, so that no other node asks meanwhile
        try:
            self.pending.wrote(key, await self.client.create(self.attachments.resource, one.obj()))
        except AlreadyExists:
            pass  # its event is on the way
        except ApiError:
            self._asked.pop(one.volume, None)
            raise

    async def _tell_node(self, node: Obj, present: list[Obj],
                         wanted: dict[str, tuple[attachments.Attachment, Obj]]) -> None:
        listed = attachments.attached_to(node, [(one, self.volumes.get("", of_volume(one)[0])) for one in present])
        if listed is None:
            return
        await self.client.patch(NODES, objects.name(node), {
            "metadata": {"resourceVersion": objects.revision(node)}, "status": {"volumesAttached": listed}},
            kind="merge", subresource="status")
        before = {one["name"] for one in objects.get(node, "status.volumesAttached", [])}
        for one, pod in wanted.values():
            if one.unique_name in {entry["name"] for entry in listed} - before:
                self.recorder.event(pod, "Normal", "SuccessfulAttachVolume",
                                    f'AttachVolume.Attach succeeded for volume "{one.volume}" ')
