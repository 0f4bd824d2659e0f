"""What the CSI wants to be told of a volume: read from a PersistentVolume or from a pod's own inline volume.

Pure. Owns the names, modes and contexts of upstream's requests. Called by `csi`.

Upstream: pkg/volume/csi/csi_mounter.go.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

from agent.kubelet.volumes.claims import Claimed
from controlplane.machinery import objects, quantity
from cri_proto.messages import csi

Object = dict[str, Any]
_MODES = {"ReadWriteOnce": "SINGLE_NODE_WRITER", "ReadWriteOncePod": "SINGLE_NODE_WRITER",
          "ReadOnlyMany": "MULTI_NODE_READER_ONLY", "ReadWriteMany": "MULTI_NODE_MULTI_WRITER"}
RESIZING = ("Resizing", "FileSystemResizePending")  # conditions of a claim
_ONE_NODE = {"ReadWriteOnce", "ReadWriteOncePod"}


@dataclass(frozen=True, slots=True)
class Source:
    """One volume of a driver. A secret is (namespace, name)."""

    driver: str
    handle: str
    name: str  # as upstream names it in paths: the PersistentVolume's name, or the pod's volume
    access: tuple[str, ...] = ("ReadWriteOnce",)
    read_only: bool = False
    ephemeral: bool = False
    block: bool = False
    fs_type: str = ""
    mount_options: tuple[str, ...] = ()
    attributes: dict[str, str] = field(default_factory=dict)
    stage_secret: tuple[str, str] | None = None
    publish_secret: tuple[str, str] | None = None
    expand_secret: tuple[str, str] | None = None
    claim: tuple[str, str] | None = None  # namespace and name
    capacity: str = ""  # of the volume,
    told: str = ""  # and as its claim says: quantities


def _reference(found: Object | None, namespace: str = "") -> tuple[str, str] | None:
    return (found.get("namespace") or namespace, found["name"]) if found else None


def source_of(pod: Object, claimed: Claimed | None, inline: Object | None) -> Source:
    """The volume behind a claim, or the pod's `inline` one (the whole volume, with its `csi`)."""
    if claimed is None:
        assert inline is not None
        spec, meta = inline["csi"], pod["metadata"]
        text = f"{inline['name']}{meta.get('namespace', '')}{meta['name']}{meta['uid']}"
        return Source(spec["driver"], f"csi-{hashlib.sha256(text.encode()).hexdigest()}", inline["name"],
                      read_only=bool(spec.get("readOnly")), ephemeral=True, fs_type=spec.get("fsType") or "",
                      attributes=dict(spec.get("volumeAttributes") or {}),
                      publish_secret=_reference(spec.get("nodePublishSecretRef"), meta.get("namespace", "")))
    whole, claim = claimed.volume["spec"], claimed.claim
    spec = whole["csi"]
    return Source(spec["driver"], spec["volumeHandle"], claimed.volume["metadata"]["name"],
                  tuple(whole.get("accessModes") or ()), bool(spec.get("readOnly")) or claimed.read_only,
                  block=claimed.block, fs_type=spec.get("fsType") or "",
                  mount_options=tuple(whole.get("mountOptions") or ()),
                  attributes=dict(spec.get("volumeAttributes") or {}),
                  stage_secret=_reference(spec.get("nodeStageSecretRef")),
                  publish_secret=_reference(spec.get("nodePublishSecretRef")),
                  expand_secret=_reference(spec.get("nodeExpandSecretRef")),
                  claim=(objects.namespace(claim), objects.name(claim)),
                  capacity=objects.get(whole, "capacity.storage", ""),
                  told=objects.get(claim, "status.capacity.storage", ""))


def grows(source: Source) -> bool:
    """Whether the volume has become larger than its claim says: the driver has to make its file system as large."""
    return bool(source.told and source.capacity) and quantity.compare(source.told, source.capacity) < 0


def grown(claim: Object, source: Source) -> Object:
    """The merge patch that tells a claim's new size, with nothing of the resizing left."""
    rest = [c for c in objects.get(claim, "status.conditions", []) if c["type"] not in RESIZING]
    return {"status": {"capacity": {"storage": source.capacity}, "conditions": rest or None,
                       "allocatedResourceStatuses": None}}


def usage_from(answer: Any) -> Object:
    """What a driver measured, by the names of /stats/summary."""
    told: Object = {}
    for one in answer.usage:
        names = {csi.VolumeUsage.BYTES: ("availableBytes", "capacityBytes", "usedBytes"),
                 csi.VolumeUsage.INODES: ("inodesFree", "inodes", "inodesUsed")}.get(one.unit, ())
        told |= dict(zip(names, (one.available, one.total, one.used)))
    if answer.HasField("volume_condition"):
        told["volumeHealthStats"] = {"abnormal": answer.volume_condition.abnormal}
    return told


def attachment_name(source: Source, node: str) -> str:
    return "csi-" + hashlib.sha256((source.handle + source.driver + node).encode()).hexdigest()


def capability(source: Source, group: int | None) -> Any:
    """The VolumeCapability; `group` is the pod's when the driver sets it by itself."""
    mode = next((_MODES[m] for m in ("ReadWriteMany", "ReadOnlyMany", "ReadWriteOnce", "ReadWriteOncePod")
                 if m in source.access), "SINGLE_NODE_WRITER")
    made = csi.VolumeCapability()
    made.access_mode.mode = csi.VolumeCapability.AccessMode.Mode.Value(mode)
    if source.block:
        made.block.SetInParent()
    else:
        made.mount.SetInParent()
        made.mount.fs_type = source.fs_type
        made.mount.mount_flags.extend(source.mount_options)
        made.mount.volume_mount_group = "" if group is None else str(group)
    return made


def context_of(pod: Object, source: Source, driver: Object) -> dict[str, str]:
    """The volume's attributes, with what the driver wants to know of the pod."""
    if objects.get(driver, "spec.podInfoOnMount") is not True:
        return source.attributes
    meta = pod["metadata"]
    return {**source.attributes, "csi.storage.k8s.io/pod.name": meta["name"],
            "csi.storage.k8s.io/pod.namespace": meta.get("namespace", ""), "csi.storage.k8s.io/pod.uid": meta["uid"],
            "csi.storage.k8s.io/serviceAccount.name": pod["spec"].get("serviceAccountName") or "default",
            "csi.storage.k8s.io/ephemeral": str(source.ephemeral).lower()}


def changes_ownership(source: Source, driver: Object) -> bool:
    """Whether fsGroup is the kubelet's to carry out: by the driver's fsGroupPolicy."""
    policy = objects.get(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType")
    if source.block or policy == "None":
        return False
    return policy == "File" or (bool(source.fs_type) and bool(_ONE_NODE & set(source.access)))
