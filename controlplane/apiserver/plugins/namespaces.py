"""NamespaceLifecycle: nothing is created in a namespace that is missing or going, and some namespaces stay.

Owns the list of namespaces that cannot be deleted. Reads the cache only. Called by the admission chain.
"""

from __future__ import annotations

from controlplane.apiserver.admission import CREATE, DELETE, Attributes, Plugin
from controlplane.apiserver.reading.lists import object_key
from controlplane.machinery.errors import Cause, Forbidden, NotFound
from controlplane.machinery.resources import named

IMMORTAL = ("default", "kube-system", "kube-public")
_ALWAYS_ALLOWED = ("localsubjectaccessreviews.authorization.k8s.io",)  # asks, stores nothing


class NamespaceLifecycle(Plugin):
    async def mutate(self, attributes: Attributes) -> None:
        if attributes.operation == DELETE:
            if attributes.resource.name == "namespaces" and attributes.name in IMMORTAL:
                raise attributes.forbidden("this namespace may not be deleted")
            return
        if attributes.operation != CREATE or not attributes.resource.namespaced or attributes.subresource \
                or attributes.resource.name in _ALWAYS_ALLOWED:
            return
        space = self.context.cache.get(object_key(named("namespaces"), "", attributes.namespace))
        if space is None:
            raise NotFound.of("namespaces", attributes.namespace)
        phase = (space.obj.get("status") or {}).get("phase")
        if space.obj["metadata"].get("deletionTimestamp") or phase == "Terminating":
            raise Forbidden.of(
                attributes.resource.plural, attributes.name,
                f"unable to create new content in namespace {attributes.namespace} because it is being terminated",
                attributes.resource.group,
                [Cause("NamespaceTerminating", f"namespace {attributes.namespace} is being terminated",
                       "metadata.namespace")])
