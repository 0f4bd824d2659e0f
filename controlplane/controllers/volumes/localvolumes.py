"""Volumes that are folders of a node: their class, and the volume a claim gets.

Pure. Owns the StorageClass `local-path` that every cluster begins with and the node affinity that keeps a claim's pods
where its data is. Called by `localpath`.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.volumes import matching
from controlplane.machinery import objects

PROVISIONER = "pelamis.io/local-path"
CLASS = "local-path"
FINALIZER = "pelamis.io/local-path"  # kept by a volume until its folder is gone
HOSTNAME = "kubernetes.io/hostname"
SERVED_MODES = {"ReadWriteOnce", "ReadWriteOncePod"}  # a folder of one node can be nothing else

Obj = dict[str, Any]


def storage_class() -> Obj:
    return {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": CLASS, "annotations": {matching.DEFAULT_CLASS[0]: "true"}},
            "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer"}


def wanted(claim: Obj) -> bool:
    """Whether the claim waits for a volume of ours."""
    return objects.annotations(claim).get(matching.PROVISIONER) == PROVISIONER and not objects.deleting(claim) \
        and not objects.get(claim, "spec.volumeName")


def refusal(claim: Obj) -> str:
    """Why the claim can get no such volume, "" when it can."""
    if objects.get(claim, "spec.volumeMode", "Filesystem") != "Filesystem":
        return "local-path volumes are folders: volumeMode must be Filesystem"
    if not set(objects.get(claim, "spec.accessModes", [])) <= SERVED_MODES:
        return "local-path volumes belong to one node: accessModes may be ReadWriteOnce or ReadWriteOncePod"
    if objects.get(claim, "spec.selector") is not None:
        return "claim.Spec.Selector is not supported"
    if objects.get(claim, "spec.dataSource") is not None or objects.get(claim, "spec.dataSourceRef") is not None:
        return "local-path volumes begin empty: dataSource is not supported"
    return ""


def name_of(claim: Obj) -> str:
    return f"pvc-{objects.uid(claim)}"


def volume(claim: Obj, made_by: Obj, node: Obj, path: str) -> Obj:
    """The claim's volume of class `made_by`: the folder `path` of `node`."""
    hostname = objects.labels(node).get(HOSTNAME, objects.name(node))
    term = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]}
    spec: Obj = {"capacity": {"storage": objects.get(claim, "spec.resources.requests.storage")},
                 "accessModes": objects.get(claim, "spec.accessModes"), "volumeMode": "Filesystem",
                 "persistentVolumeReclaimPolicy": made_by.get("reclaimPolicy", "Delete"),
                 "storageClassName": objects.name(made_by), "claimRef": matching.reference(claim),
                 "hostPath": {"path": path, "type": "Directory"},
                 "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}
    if options := made_by.get("mountOptions"):
        spec["mountOptions"] = options
    return {"apiVersion": "v1", "kind": "PersistentVolume", "spec": spec, "metadata": {
        "name": name_of(claim), "finalizers": [FINALIZER],
        "annotations": {matching.PROVISIONED_BY: PROVISIONER, matching.SELECTED_NODE: objects.name(node)}}}


def ours(volume: Obj) -> bool:
    return objects.annotations(volume).get(matching.PROVISIONED_BY) == PROVISIONER


def unused(volume: Obj) -> bool:
    """Whether nobody has the volume any more, or somebody deletes it who may."""
    return objects.get(volume, "status.phase") in ("Released", "Failed") or (
        objects.deleting(volume) and objects.get(volume, "status.phase") != "Bound")


def node_of(volume: Obj) -> str:
    return objects.annotations(volume).get(matching.SELECTED_NODE, "")
