"""Which volumes of CSI drivers must be attached to which node.

Pure. Owns the names of VolumeAttachments and of attached volumes, and who still needs one: a pod that is placed and not
finished, or a kubelet that says it has the volume mounted. Called by `attachdetach`.

Upstream: pkg/controller/volume/attachdetach and pkg/volume/csi (csi_attacher.go).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects, podfacts

SINGLE = {"ReadWriteOnce", "ReadWriteOncePod"}  # access modes of a volume that one node may have at a time

_NAME = re.compile("csi-[0-9a-f]{64}")

Obj = dict[str, Any]


def _unique(driver: str, handle: str) -> str:
    return f"kubernetes.io/csi/{driver}^{handle}"


@dataclass(frozen=True, slots=True)
class Attachment:
    """One volume on one node."""

    driver: str
    handle: str
    node: str
    volume: str  # the PersistentVolume's name
    single: bool

    @property
    def name(self) -> str:
        return "csi-" + hashlib.sha256((self.handle + self.driver + self.node).encode()).hexdigest()

    @property
    def unique_name(self) -> str:
        """As nodes report it in `status.volumesInUse` and `status.volumesAttached`."""
        return _unique(self.driver, self.handle)

    def obj(self) -> Obj:
        return {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": self.name},
                "spec": {"attacher": self.driver, "nodeName": self.node,
                         "source": {"persistentVolumeName": self.volume}}}


def attachment(volume: Obj, node: str, driver: Obj | None) -> Attachment | None:
    """The attachment the volume needs on the node; None when its driver (None: not registered) needs none."""
    csi = objects.get(volume, "spec.csi")
    if csi is None or objects.get(driver or {}, "spec.attachRequired", True) is False:
        return None
    single = set(objects.get(volume, "spec.accessModes", [])) <= SINGLE
    return Attachment(csi.get("driver", ""), csi.get("volumeHandle", ""), node, objects.name(volume), single)


def wanted(node: str, pods: Iterable[Obj], volume_of: Callable[[str, str], Obj | None],
           driver_of: Callable[[str], Obj | None]) -> dict[str, tuple[Attachment, Obj]]:
    """What the node's pods need, by name, each with a pod that needs it."""
    found: dict[str, tuple[Attachment, Obj]] = {}
    for pod in pods:
        if podfacts.finished(pod):
            continue
        for claim, _ in podfacts.claim_names(pod):
            volume = volume_of(objects.namespace(pod), claim)
            if volume is None:
                continue
            one = attachment(volume, node, driver_of(objects.get(volume, "spec.csi.driver", "")))
            if one is not None:
                found.setdefault(one.name, (one, pod))
    return found


def ours(one: Obj) -> bool:
    """Whether the VolumeAttachment is named as we name them: people may make others."""
    return _NAME.fullmatch(objects.name(one)) is not None


def in_use(node: Obj, one: Obj, volume: Obj | None) -> bool:
    """Whether the node's kubelet says that it still has the attachment's volume mounted."""
    if any(taint.get("key") == "node.kubernetes.io/out-of-service" for taint in objects.get(node, "spec.taints", [])):
        return False
    name = _unique(objects.get(one, "spec.attacher"), objects.get(volume or {}, "spec.csi.volumeHandle", ""))
    return name in objects.get(node, "status.volumesInUse", [])


def attached_to(node: Obj, attachments: Iterable[tuple[Obj, Obj | None]]) -> list[Obj] | None:
    """The node's `status.volumesAttached` from (attachment, its volume); None when it says so already."""
    listed = sorted(_unique(objects.get(one, "spec.attacher"), objects.get(volume, "spec.csi.volumeHandle", ""))
                    for one, volume in attachments if volume is not None and not objects.deleting(one)
                    and objects.get(one, "status.attached"))
    result = [{"name": name, "devicePath": ""} for name in listed]
    return None if result == objects.get(node, "status.volumesAttached", []) else result
