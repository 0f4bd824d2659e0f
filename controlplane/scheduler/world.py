"""What the scheduler looks up beside pods and nodes: workloads, budgets, namespaces, volumes.

Owns the informers for that, shared with the rest of the process. Promises look-ups without waiting; never writes and
never decides. The `on_…` tell which part of the world moved. Made by the process, used by `loop`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from controlplane.client.informer import Informer, Informers
from controlplane.machinery import objects, selectors
from controlplane.machinery.resources import named
from controlplane.machinery.selectors import LabelSelector

OWNERS = {"ReplicaSet": "replicasets.apps", "StatefulSet": "statefulsets.apps",
          "ReplicationController": "replicationcontrollers"}
STORAGE = ("persistentvolumeclaims", "persistentvolumes", "storageclasses.storage.k8s.io", "csinodes.storage.k8s.io",
           "csidrivers.storage.k8s.io", "csistoragecapacities.storage.k8s.io")
DEVICES = ("resourceclaims.resource.k8s.io", "deviceclasses.resource.k8s.io", "resourceslices.resource.k8s.io")
OTHERS = ("namespaces", "services", "poddisruptionbudgets.policy")
Obj = dict[str, Any]


def _namespace(obj: Obj) -> list[str]:
    return [objects.namespace(obj)]


class World:
    """`keep` is what the process drops of each resource's objects: shared informers must agree on it."""

    def __init__(self, informers: Informers, keep: Callable[[Any], Any] = lambda resource: None) -> None:
        def of(name: str) -> Informer:
            resource = named(name)
            indexes = {"namespace": _namespace} if name == "services" else None
            return informers.of(resource, indexes=indexes, keep=keep(resource))
        self._of = {name: of(name) for name in (*OWNERS.values(), *STORAGE, *DEVICES, *OTHERS)}

    def informer(self, name: str) -> Informer:
        return self._of[name]

    async def synced(self) -> None:
        await asyncio.gather(*(informer.synced() for informer in self._of.values()))

    def on_namespace(self, tell: Callable[[str, Obj | None, Obj], None]) -> None:
        self._of["namespaces"].subscribe(tell)

    def on_storage(self, tell: Callable[[str, Obj | None, Obj], None]) -> None:
        for name in STORAGE:
            self._of[name].subscribe(tell)

    def on_devices(self, tell: Callable[[str, Obj | None, Obj], None]) -> None:
        for name in DEVICES:
            self._of[name].subscribe(tell)

    # --- workloads ---------------------------------------------------------------------------------------------

    def family(self, pod: Obj) -> LabelSelector | None:
        """Finds the pods of the same Services and workload; None when the pod belongs to none."""
        labels = objects.labels(pod)
        equal: dict[str, str] = {}
        for service in self._of["services"].by("namespace", objects.namespace(pod)):
            wanted = (service.get("spec") or {}).get("selector") or {}
            if wanted and wanted.items() <= labels.items():
                equal |= wanted
        found = selectors.from_map(equal)
        owner = objects.controller_of(pod) or {}
        resource = OWNERS.get(owner.get("kind", ""))
        if resource is not None:
            workload = self._of[resource].get(objects.namespace(pod), owner.get("name", ""))
            theirs = objects.get(workload or {}, "spec.selector", None)
            if theirs:
                own = selectors.from_map(theirs) if owner["kind"] == "ReplicationController" \
                    else selectors.from_label_selector(theirs)
                found = LabelSelector(tuple(dict.fromkeys((*found.requirements, *own.requirements))))
        return None if found.empty else found

    def budgets(self) -> list[Obj]:
        return list(self._of["poddisruptionbudgets.policy"].items())

    # --- volumes: a `volumes.Shelf` ----------------------------------------------------------------------------

    def claim(self, namespace: str, name: str) -> Obj | None:
        return self._one("persistentvolumeclaims", namespace, name)

    def volume(self, name: str) -> Obj | None:
        return self._one("persistentvolumes", "", name)

    def volumes(self) -> Iterable[Obj]:
        return list(self._of["persistentvolumes"].items())

    def storage_class(self, name: str) -> Obj | None:
        return self._one("storageclasses.storage.k8s.io", "", name)

    def csi_node(self, name: str) -> Obj | None:
        return self._one("csinodes.storage.k8s.io", "", name)

    def csi_driver(self, name: str) -> Obj | None:
        return self._one("csidrivers.storage.k8s.io", "", name)

    def capacities(self) -> Iterable[Obj]:
        return self._of["csistoragecapacities.storage.k8s.io"].items()

    # --- devices: a `claims.Shelf` -----------------------------------------------------------------------------

    def device_claim(self, namespace: str, name: str) -> Obj | None:
        return self._one("resourceclaims.resource.k8s.io", namespace, name)

    def device_claims(self) -> Iterable[Obj]:
        return self._of["resourceclaims.resource.k8s.io"].items()

    def device_class(self, name: str) -> Obj | None:
        return self._one("deviceclasses.resource.k8s.io", "", name)

    def device_classes(self) -> Iterable[Obj]:
        return self._of["deviceclasses.resource.k8s.io"].items()

    def device_slices(self) -> Iterable[Obj]:
        return self._of["resourceslices.resource.k8s.io"].items()

    def _one(self, resource: str, namespace: str, name: str) -> Obj | None:
        return self._of[resource].get(namespace, name)
