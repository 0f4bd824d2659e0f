"""Namespaces that are being deleted: empty them, say what remains, let them go.

Owns the order: pods first, and everything else only when no pod is left, since a pod may need its Secrets to end well.
Promises that a Namespace is finalized only after every served kind was seen empty, and that its conditions name what
still holds it. Never deletes what is not in a Namespace with a deletionTimestamp. Called by `manager`.

Upstream: pkg/controller/namespace/deletion.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from controlplane.client import aggregated
from controlplane.client.discovery import Kinds
from controlplane.controllers.runtime import PODS, Context, Controller
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, Conflict, MethodNotAllowed, NotFound
from controlplane.machinery.resources import BUILTIN, Resource, named

REMAINS_SECONDS = 2.0  # until the next look at what finalizers hold: nothing tells us when they are done
PODS_SECONDS = 15.0  # the same for pods, whose deletions we do hear of
NAMESPACES = named("namespaces")

Obj = dict[str, Any]


class Namespaces(Controller):
    name = "namespace-controller"

    def __init__(self, context: Context) -> None:
        self.namespaces = context.informer(NAMESPACES)
        self.pods = context.informer(PODS)
        self.kinds = Kinds(context.informers)
        super().__init__(context, self.namespaces, self.pods, self.kinds.informer)
        self.namespaces.subscribe(self._changed)
        self.pods.subscribe(self._pod_changed)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind != "DELETED" and objects.deleting(new):
            self.queue.add(objects.name(new))

    def _pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            owner = self.namespaces.get("", objects.namespace(new))
            if owner is not None and objects.deleting(owner):
                self.queue.add(objects.name(owner))

    async def reconcile(self, name: str) -> float | None:
        namespace = self.namespaces.get("", name)
        if namespace is None or not objects.deleting(namespace) or \
                "kubernetes" not in objects.get(namespace, "spec.finalizers", []):
            return None
        pods, errors = await self._empty(name, [PODS])
        others: dict[str, list[Obj]] = {}
        absent: list[str] = []  # groups of other API servers that do not answer
        if not pods.get(PODS.name) and not errors:
            foreign, absent = await aggregated.everything(self.client)
            others, errors = await self._empty(name, contents([*self.kinds.all(), *foreign]))
        remaining = pods | others
        stamp = self.clock.timestamp()
        conditions = objects.deep_copy(objects.get(namespace, "status.conditions", []))
        for kind, state, reason, message in report(remaining, errors, absent):
            objects.set_condition(conditions, kind, state, reason, message, stamp)
        status = {**(namespace.get("status") or {}), "phase": "Terminating", "conditions": conditions}
        try:
            if status != namespace.get("status"):
                namespace = await self.client.update(NAMESPACES, {**namespace, "status": status}, "status")
            if not any(remaining.values()) and not errors and not absent:
                left = [f for f in namespace["spec"]["finalizers"] if f != "kubernetes"]
                await self.client.update(NAMESPACES, {**namespace, "spec": {"finalizers": left}}, "finalize")
                return None
        except (NotFound, Conflict):
            return REMAINS_SECONDS
        return PODS_SECONDS if remaining.get(PODS.name) else REMAINS_SECONDS

    async def _empty(self, namespace: str, kinds: list[Resource]) -> tuple[dict[str, list[Obj]], list[str]]:
        """Delete all objects of these kinds; (what remains by resource, errors)."""
        remaining: dict[str, list[Obj]] = {}
        errors: list[str] = []
        for resource in kinds:
            try:
                if not await self._listed(resource, namespace):
                    continue
                await self._delete_all(resource, namespace)
                remaining[resource.name] = await self._listed(resource, namespace)
            except (NotFound, MethodNotAllowed):
                continue  # not served (any more): nothing can be in it
            except ApiError as error:
                errors.append(error.message)
        return {name: left for name, left in remaining.items() if left}, errors

    async def _delete_all(self, resource: Resource, namespace: str) -> None:
        if "deletecollection" in resource.verbs:
            await self.client.delete_collection(resource, namespace, propagation="Background")
            return
        for obj in await self._listed(resource, namespace):
            try:
                await self.client.delete(resource, objects.name(obj), namespace, propagation="Background")
            except NotFound:
                pass

    async def _listed(self, resource: Resource, namespace: str) -> list[Obj]:
        return [obj async for page, _ in self.client.pages(resource, namespace, metadata=True) for obj in page]


def contents(custom: list[Resource]) -> list[Resource]:
    """Every namespaced kind but pods that can be listed and deleted, one version of each."""
    seen: dict[str, Resource] = {}
    for resource in [*BUILTIN, *custom]:
        if resource.namespaced and {"list", "delete"} <= set(resource.verbs) and resource != PODS:
            seen.setdefault(resource.name, resource)
    return list(seen.values())


def report(remaining: dict[str, list[Obj]], errors: list[str], absent: list[str]) -> list[tuple[str, str, str, str]]:
    """The conditions (type, status, reason, message) that tell what keeps a Namespace."""
    finalizers: Counter[str] = Counter()
    for left in remaining.values():
        for obj in left:
            finalizers.update(obj["metadata"].get("finalizers") or ())
    content = ", ".join(f"{name if '.' in name else name + '.'} has {len(left)} resource instances"  # upstream's form
                        for name, left in sorted(remaining.items()))
    held = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(finalizers.items()))
    return [
        ("NamespaceDeletionDiscoveryFailure", "True", "DiscoveryFailed",
         f"Discovery failed for some groups, {len(absent)} failing: unable to retrieve the complete list of server "
         "APIs: " + ", ".join(f"{gv}: stale GroupVersion discovery: {gv}" for gv in absent)) if absent else
        ("NamespaceDeletionDiscoveryFailure", "False", "ResourcesDiscovered",
         "All resources successfully discovered"),
        ("NamespaceDeletionGroupVersionParsingFailure", "False", "ParsedGroupVersions",
         "All legacy kube types successfully parsed"),
        ("NamespaceDeletionContentFailure", "True", "ContentDeletionFailed",
         "Failed to delete all resource types, " + f"{len(errors)} remaining: " + ", ".join(errors)) if errors else
        ("NamespaceDeletionContentFailure", "False", "ContentDeleted",
         "All content successfully deleted, may be waiting on finalization"),
        ("NamespaceContentRemaining", "True", "SomeResourcesRemain", f"Some resources are remaining: {content}")
        if content else
        ("NamespaceContentRemaining", "False", "ContentRemoved", "All content successfully removed"),
        ("NamespaceFinalizersRemaining", "True", "SomeFinalizersRemain",
         f"Some content in the namespace has finalizers remaining: {held}") if held else
        ("NamespaceFinalizersRemaining", "False", "ContentHasNoFinalizers",
         "All content-preserving finalizers finished")]
