"""Validation of PersistentVolumes and the claims to them.

Upstream: ValidatePersistentVolume, ValidatePersistentVolumeClaim and their updates in
k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names, quantity
from controlplane.machinery.errors import IMMUTABLE, Cause, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.metadata import label_selector
from controlplane.machinery.validate.podupdates import differences
from controlplane.machinery.validate.volumes import source_faults

Object = dict[str, Any]
ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
SOURCES = frozenset((
    "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume", "flocker",
    "gcePersistentDisk", "glusterfs", "hostPath", "iscsi", "local", "nfs", "photonPersistentDisk", "portworxVolume",
    "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume"))
CLAIM_FIXED = ("spec is immutable after creation except resources.requests and volumeAttributesClassName for bound "
               "claims")
SOURCE_FIXED = "spec.persistentvolumesource is immutable after creation"


def persistent_volume(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = _modes(spec, "spec")
    capacity = spec.get("capacity") or {}
    if not capacity:
        found.append(required("spec.capacity"))
    elif "storage" not in capacity or len(capacity) > 1:
        found.append(not_supported("spec.capacity", sorted(capacity), ("storage",)))
    for name, text in capacity.items():
        if quantity.parse(text).nano <= 0:
            found.append(invalid(f"spec.capacity[{name}]", str(text), "must be greater than zero"))
    policy = spec.get("persistentVolumeReclaimPolicy") or ""
    if policy not in ("Delete", "Recycle", "Retain"):
        found.append(not_supported("spec.persistentVolumeReclaimPolicy", policy, ("Delete", "Recycle", "Retain")))
    sources = [k for k in spec if k in SOURCES and spec[k] is not None]
    if not sources:
        found.append(required("spec", "must specify a volume type"))
    found += [forbidden(f"spec.{k}", "may not specify more than 1 volume type") for k in sources[1:]]
    if sources:
        found += _source(sources[0], spec, policy)
    if spec.get("storageClassName"):
        found += [invalid("spec.storageClassName", spec["storageClassName"], m)
                  for m in names.dns_subdomain(spec["storageClassName"])]
    return found + _volume_mode(spec, "spec")


def _source(kind: str, spec: Object, policy: str) -> list[Cause]:
    found = source_faults(kind, spec[kind], f"spec.{kind}")
    path = (spec[kind] or {}).get("path") or ""
    if kind == "hostPath" and path == "/" and policy == "Recycle":
        found.append(forbidden("spec.persistentVolumeReclaimPolicy",
                               "may not be 'recycle' for a hostPath mount of '/'"))
    if kind == "local":
        if not path:
            found.append(required("spec.local.path"))
        if (spec.get("nodeAffinity") or {}).get("required") is None:
            found.append(required("spec.nodeAffinity", "Local volume requires node affinity"))
    return found


def _modes(spec: Object, path: str) -> list[Cause]:
    modes = spec.get("accessModes") or []
    if not modes:
        return [required(f"{path}.accessModes", "at least 1 access mode is required" if path == "spec" else "")]
    found = [not_supported(f"{path}.accessModes", mode, ACCESS_MODES) for mode in modes if mode not in ACCESS_MODES]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        found.append(forbidden(f"{path}.accessModes", "may not use ReadWriteOncePod with other access modes"))
    return found


def _volume_mode(spec: Object, path: str) -> list[Cause]:
    mode = spec.get("volumeMode")
    return [] if mode in (None, "Block", "Filesystem") else [
        not_supported(f"{path}.volumeMode", mode, ("Block", "Filesystem"))]


def volume_changes(new: Object, old: Object) -> list[Cause]:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found: list[Cause] = []
    was, now = ({k: v for k, v in s.items() if k in SOURCES} for s in (before, after))
    if was != now and not _only_secrets_changed(was, now):
        found.append(forbidden("spec.persistentvolumesource", SOURCE_FIXED + _difference(was, now)))
    if after.get("volumeMode") != before.get("volumeMode"):
        found.append(invalid("spec.volumeMode", after.get("volumeMode"), IMMUTABLE))
    if before.get("nodeAffinity") is not None and after.get("nodeAffinity") != before.get("nodeAffinity"):
        found.append(invalid("spec.nodeAffinity", after.get("nodeAffinity"), "field is immutable, except for updating "
                             "from beta label to GA"))
    return found


def _only_secrets_changed(was: Object, now: Object) -> bool:
    """A CSI volume may be given the secret it is expanded with."""
    if "csi" not in was or "csi" not in now:
        return False
    return {**was["csi"], "controllerExpandSecretRef": None} == {**now["csi"], "controllerExpandSecretRef": None}


def _difference(was: Object, now: Object) -> str:
    return "\n" + "\n".join(differences(was, now)) + "\n"


def claim(obj: Object) -> list[Cause]:
    return claim_spec(obj.get("spec") or {}, "spec")


def claim_spec(spec: Object, path: str) -> list[Cause]:
    """A claim's wish; of the claims that pods and stateful sets make too."""
    found = [required(f"{path}.accessModes", "at least 1 access mode is required")] if not spec.get(
        "accessModes") else _modes(spec, path)
    requests = (spec.get("resources") or {}).get("requests") or {}
    at = f"{path}.resources[storage]"
    if "storage" not in requests:
        found.append(required(at))
    elif quantity.parse(requests["storage"]).nano <= 0:
        found.append(invalid(at, str(requests["storage"]), "must be greater than zero"))
    if spec.get("selector") is not None:
        found += label_selector(spec["selector"], f"{path}.selector")
    for field in ("storageClassName", "volumeAttributesClassName"):
        if spec.get(field):
            found += [invalid(f"{path}.{field}", spec[field], m) for m in names.dns_subdomain(spec[field])]
    for field in ("dataSource", "dataSourceRef"):
        source = spec.get(field)
        if source is not None:
            found += [required(f"{path}.{field}.{f}") for f in ("name", "kind") if not source.get(f)]
            if not source.get("apiGroup") and source.get("kind") not in (None, "", "PersistentVolumeClaim"):
                found.append(invalid(f"{path}.{field}", source["kind"], "must be 'PersistentVolumeClaim' when "
                                     "referencing the default apiGroup"))
    return found + _volume_mode(spec, path)


def claim_changes(new: Object, old: Object) -> list[Cause]:
    """A claim's wish is fixed; a bound one may grow. The binder fills in the volume and the default class."""
    after, before = dict(new.get("spec") or {}), dict(old.get("spec") or {})
    found: list[Cause] = []
    if not before.get("volumeName"):
        before["volumeName"] = after.get("volumeName")
    if before.get("storageClassName") is None and after.get("storageClassName") is not None:
        before["storageClassName"] = after["storageClassName"]  # the default class was named later
    bound = (old.get("status") or {}).get("phase") == "Bound"
    asked, had = (((s.get("resources") or {}).get("requests") or {}).get("storage") for s in (after, before))
    if bound and asked is not None and had is not None:
        capacity = ((old.get("status") or {}).get("capacity") or {}).get("storage") or had
        if quantity.parse(asked) < quantity.parse(had) and quantity.parse(asked) <= quantity.parse(capacity):
            found.append(forbidden("spec.resources.requests.storage", "field can not be less than "
                                   "status.capacity"))
        before["resources"] = {**(before.get("resources") or {}), "requests": (after["resources"])["requests"]}
        before["volumeAttributesClassName"] = after.get("volumeAttributesClassName")
    was, now = ({k: v for k, v in s.items() if v is not None} for s in (before, after))
    if was != now:
        found.append(forbidden("spec", CLAIM_FIXED + _difference(old.get("spec") or {}, new.get("spec") or {})))
    return found
