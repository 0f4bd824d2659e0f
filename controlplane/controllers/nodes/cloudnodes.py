"""Nodes of a cloud: told who they are when they come, tainted while their machine is off, deleted when it is gone.

Owns the taints `node.cloudprovider.kubernetes.io/…`, `spec.providerID` and what labels and addresses follow from the
machine. Only a node that is not ready is asked about again and again: a machine that works needs no questions. Runs
only with a provider that knows machines; called by `manager`.

Upstream: k8s.io/cloud-provider/controllers/node and nodelifecycle.
"""

from __future__ import annotations

from typing import Any

from controlplane.cloud import machines
from controlplane.cloud.provider import Instances
from controlplane.controllers.runtime import NODES, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import Conflict, Finding, NotFound

ASK = 5.0  # seconds between questions about a node that is not ready: upstream's node monitor period
REFRESH = 300.0  # seconds after which addresses are asked for again: upstream's
Obj = dict[str, Any]


class CloudNodes(Controller):
    """Keys are node names."""

    name = "cloud-node-controller"

    def __init__(self, context: Context, instances: Instances) -> None:
        self.nodes = context.informer(NODES)
        super().__init__(context, self.nodes)
        self._instances = instances
        self.nodes.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and (old is None or objects.holds(old, "Ready") != objects.holds(new, "Ready")
                                  or machines.is_uninitialized(new)):
            self.queue.add(objects.name(new))

    async def reconcile(self, name: str) -> float | None:
        node = self.nodes.get("", name)
        if node is None or objects.deleting(node) or not self.pending.settled(name, self.nodes):
            return None
        try:
            if machines.is_uninitialized(node) or objects.holds(node, "Ready"):
                return await self._tell(name, node)
            return await self._ask(name, node)
        except (Finding, OSError) as error:
            self.recorder.event(node, "Warning", "CloudProviderError", str(error))
            return ASK
        except (Conflict, NotFound):
            return 0.0  # it changed meanwhile: look at it again

    async def _tell(self, name: str, node: Obj) -> float:
        """What the cloud knows of the machine, into the Node: addresses first, for the taint holds pods back."""
        known = await self._instances.metadata(node)
        status = machines.addressed(node, known)
        if status:
            node = await self.client.patch(NODES, name, status, "", "merge", "status")
        if machines.is_uninitialized(node):
            node = await self.client.patch(NODES, name, machines.initialized(node, known), "", "merge")
            self.recorder.event(node, "Normal", "Synced", "Node synced successfully")
        elif patch := machines.switched(node, False):
            node = await self.client.patch(NODES, name, patch, "", "merge")
        self.pending.wrote(name, node)
        return REFRESH

    async def _ask(self, name: str, node: Obj) -> float | None:
        """Why a node is silent: its machine is gone, or off, or neither."""
        if not await self._instances.exists(node):
            self.recorder.event(node, "Normal", "DeletingNode",
                                f"Deleting node {name} because it does not exist in the cloud provider")
            await self.client.delete(NODES, name, uid=objects.uid(node))
            return None
        if patch := machines.switched(node, await self._instances.is_shut_down(node)):
            self.pending.wrote(name, await self.client.patch(NODES, name, patch, "", "merge"))
        return ASK
