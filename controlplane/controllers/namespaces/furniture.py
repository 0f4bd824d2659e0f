"""What every Namespace is furnished with: the ServiceAccount `default` and the ConfigMap `kube-root-ca.crt`.

Promises that both exist in each active Namespace and come back when deleted or tampered with. Never touches a Namespace
that is being deleted. Called by `manager`.

Upstream: pkg/controller/serviceaccount and pkg/controller/certificates/rootcacertpublisher.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.resources import Resource, named

SERVICE_ACCOUNTS, CONFIG_MAPS, NAMESPACES = named("serviceaccounts"), named("configmaps"), named("namespaces")
ROOT_CA = "kube-root-ca.crt"
DESCRIPTION = ("Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such "
               "as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across "
               "distributions of Kubernetes clusters.")

Obj = dict[str, Any]


class Furniture(Controller):
    """Keeps one object, the same but for its namespace, in each Namespace."""

    def __init__(self, context: Context, name: str, resource: Resource, wanted: Obj) -> None:
        self.name, self.resource, self.wanted = name, resource, wanted
        self.namespaces = context.informer(NAMESPACES)
        self.existing = context.informer(resource)
        super().__init__(context, self.namespaces, self.existing)
        self.namespaces.subscribe(lambda kind, old, new: self.queue.add(objects.name(new)))
        self.existing.subscribe(self._changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if objects.name(new) == objects.name(self.wanted) and kind != "ADDED":
            self.queue.add(objects.namespace(new))

    async def reconcile(self, name: str) -> float | None:
        namespace = self.namespaces.get("", name)
        if namespace is None or objects.deleting(namespace):
            return None
        current = self.existing.get(name, objects.name(self.wanted))
        if current is None:
            try:
                await self.client.create(self.resource, self.wanted, name)
            except AlreadyExists:
                pass  # its event is on the way
        elif "data" in self.wanted and current.get("data") != self.wanted["data"]:
            await self.client.update(self.resource, {**current, "data": self.wanted["data"]})
        return None


def service_accounts(context: Context) -> Furniture:
    return Furniture(context, "service-account-controller", SERVICE_ACCOUNTS,
                     {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})


def root_ca(context: Context, bundle: str) -> Furniture:
    """`bundle` is the PEM text by which pods may trust the API server."""
    return Furniture(context, "root-ca-certificate-publisher", CONFIG_MAPS, {
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"ca.crt": bundle},
        "metadata": {"name": ROOT_CA, "annotations": {"kubernetes.io/description": DESCRIPTION}}})
