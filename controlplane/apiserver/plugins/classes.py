"""What a cluster offers, brought into the objects that use it: classes of storage, ingress and runtime, topology.

Owns small rules about one object each: defaults at creation, finalizers of storage, which claims may grow. They read
the cache and change only the object in hand. Called by the admission chain.

Upstream: plugin/pkg/admission/{storage,network/defaultingressclass,runtimeclass,podtopologylabels}.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin
from controlplane.apiserver.context import Context
from controlplane.apiserver.index import Index
from controlplane.machinery import podresources
from controlplane.store.cache import key_of
from controlplane.store.item import Item

STORAGE_DEFAULT = ("storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class")
INGRESS_DEFAULT = "ingressclass.kubernetes.io/is-default-class"
INGRESS_ANNOTATION = "kubernetes.io/ingress.class"
CLAIM_ANNOTATION = "volume.beta.kubernetes.io/storage-class"
Object = dict[str, Any]


def newest(items: tuple[Item, ...]) -> str:
    """The name of the class made last; of several made in one second, the first by name. Pure."""
    found = sorted(item.obj["metadata"]["name"] for item in items)
    return max(found, key=lambda name: next(item.obj["metadata"].get("creationTimestamp", "") for item in items
                                            if item.obj["metadata"]["name"] == name), default="")


def _marked(item: Item, *keys: str) -> bool:
    notes = item.obj["metadata"].get("annotations") or {}
    return any(notes.get(key) == "true" for key in keys)


class DefaultStorageClass(Plugin):
    """A claim that names no class gets the default one; one that names "" wants none."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._classes: Index[Item] = Index(context.cache, "storageclasses.storage.k8s.io", lambda item: item)

    async def mutate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns("persistentvolumeclaims", CREATE):
            return
        spec = attributes.obj["spec"] = attributes.obj.get("spec") or {}
        if spec.get("storageClassName") is not None \
                or CLAIM_ANNOTATION in (attributes.obj["metadata"].get("annotations") or {}):
            return
        if name := newest(tuple(i for i in self._classes.of() if _marked(i, *STORAGE_DEFAULT))):
            spec["storageClassName"] = name


class DefaultIngressClass(Plugin):
    """An Ingress that names no class gets the default one."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._classes: Index[Item] = Index(context.cache, "ingressclasses.networking.k8s.io", lambda item: item)

    async def mutate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns("ingresses.networking.k8s.io", CREATE):
            return
        spec = attributes.obj["spec"] = attributes.obj.get("spec") or {}
        if spec.get("ingressClassName") is not None \
                or INGRESS_ANNOTATION in (attributes.obj["metadata"].get("annotations") or {}):
            return
        if name := newest(tuple(i for i in self._classes.of() if _marked(i, INGRESS_DEFAULT))):
            spec["ingressClassName"] = name


class StorageObjectInUse(Plugin):
    """Volumes, claims and what describes them stay while they are in use: a controller takes the finalizer away."""

    _FINALIZERS = (("persistentvolumeclaims", "kubernetes.io/pvc-protection"),
                   ("persistentvolumes", "kubernetes.io/pv-protection"),
                   ("volumeattributesclasses.storage.k8s.io", "kubernetes.io/vac-protection"))

    async def mutate(self, attributes: Attributes) -> None:
        for name, finalizer in self._FINALIZERS:
            if attributes.obj is not None and attributes.concerns(name, CREATE):
                metadata = attributes.obj["metadata"]
                if finalizer not in (metadata.get("finalizers") or []):
                    metadata["finalizers"] = [*(metadata.get("finalizers") or []), finalizer]


class VolumeResize(Plugin):
    """A claim grows only once it is bound, and only when its class allows it."""

    async def validate(self, attributes: Attributes) -> None:
        if attributes.obj is None or attributes.old is None \
                or not attributes.concerns("persistentvolumeclaims", UPDATE):
            return
        new, old = ((obj.get("spec") or {}) for obj in (attributes.obj, attributes.old))
        size, before = (podresources.of_container(spec, "requests").get("storage") for spec in (new, old))
        if size is None or before is None or size <= before:
            return
        if (attributes.old.get("status") or {}).get("phase") != "Bound":
            raise attributes.forbidden("Only bound persistent volume claims can be expanded")
        name = (attributes.obj["metadata"].get("annotations") or {}).get(CLAIM_ANNOTATION) \
            or new.get("storageClassName") or ""
        item = self.context.cache.get(key_of("storageclasses.storage.k8s.io", "", name))
        if item is None or not item.obj.get("allowVolumeExpansion"):
            raise attributes.forbidden("only dynamically provisioned pvc can be resized and the storageclass that "
                                       "provisions the pvc must support resize")


class PodTopologyLabels(Plugin):
    """A Pod is told the zone and region of the node it is bound to, as labels."""

    _LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")

    async def mutate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns("pods", CREATE, subresource="binding"):
            return
        node = self.context.cache.get(key_of("nodes", "", (attributes.obj.get("target") or {}).get("name") or ""))
        found = {label: node.labels[label] for label in self._LABELS if label in node.labels} if node else {}
        if found:
            metadata = attributes.obj["metadata"]
            metadata["labels"] = {**(metadata.get("labels") or {}), **found}


class RuntimeClasses(Plugin):
    """A Pod's RuntimeClass must exist; its overhead and scheduling become the Pod's."""

    def _class(self, attributes: Attributes) -> Object | None:
        if attributes.obj is None or not attributes.concerns("pods", CREATE):
            return None
        name = (attributes.obj.get("spec") or {}).get("runtimeClassName")
        if not name:
            return None
        item = self.context.cache.get(key_of("runtimeclasses.node.k8s.io", "", name))
        if item is None:
            raise attributes.forbidden(f'pod rejected: RuntimeClass "{name}" not found')
        return item.obj

    async def mutate(self, attributes: Attributes) -> None:
        found = self._class(attributes)
        if found is None or attributes.obj is None:
            return
        try:
            adopt(attributes.obj["spec"], found)
        except ValueError as error:
            raise attributes.forbidden(str(error)) from None

    async def validate(self, attributes: Attributes) -> None:
        spec = (attributes.obj or {}).get("spec") or {}
        if not attributes.concerns("pods", CREATE) or not (spec.get("overhead") or spec.get("runtimeClassName")):
            return
        found = self._class(attributes)
        wanted = podresources.parsed(((found or {}).get("overhead") or {}).get("podFixed"))
        if spec.get("overhead") and found is None:
            raise attributes.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined "
                                       "Overhead")
        if podresources.parsed(spec.get("overhead")) != wanted:
            raise attributes.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")


def adopt(spec: Object, runtime_class: Object) -> None:
    """Give a Pod's spec what its RuntimeClass says. In place. Raises ValueError when the two contradict."""
    fixed = (runtime_class.get("overhead") or {}).get("podFixed")
    if fixed:
        if spec.get("overhead") and podresources.parsed(spec["overhead"]) != podresources.parsed(fixed):
            raise ValueError("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
        spec["overhead"] = dict(fixed)
    scheduling = runtime_class.get("scheduling") or {}
    selector, own = scheduling.get("nodeSelector") or {}, spec.get("nodeSelector") or {}
    for key, value in selector.items():
        if own.get(key, value) != value:
            raise ValueError(f"conflict: runtimeClass.scheduling.nodeSelector[{key}] = {value}; "
                             f"pod.spec.nodeSelector[{key}] = {own[key]}")
    if selector:
        spec["nodeSelector"] = {**own, **selector}
    present = spec.get("tolerations") or []
    more = [t for t in scheduling.get("tolerations") or [] if t not in present]
    if more:
        spec["tolerations"] = [*present, *more]
