"""Validation of a pod's volumes: one source each, with what that source needs.

Upstream: ValidateVolumes in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names, quantity
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, not_supported, required
from controlplane.machinery.validate import certificates, podcertificates
from controlplane.machinery.validate.containers import field_reference, relative_path, resource_reference

Object = dict[str, Any]
MODE_MAX = 0o777
MIN_TOKEN_SECONDS, MAX_TOKEN_SECONDS = 600, 1 << 32
_HOST_TYPES = ("", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket")
_DOWNWARD = frozenset(("metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels",
                       "metadata.annotations"))
# What a source cannot do without.
_NEEDED = {"nfs": ("server", "path"), "persistentVolumeClaim": ("claimName",), "secret": ("secretName",),
           "configMap": ("name",), "hostPath": ("path",), "csi": ("driver",), "ephemeral": ("volumeClaimTemplate",),
           "gitRepo": ("repository",), "iscsi": ("targetPortal", "iqn"), "glusterfs": ("endpoints", "path"),
           "rbd": ("monitors", "image"), "cephfs": ("monitors",), "flexVolume": ("driver",), "cinder": ("volumeID",),
           "awsElasticBlockStore": ("volumeID",), "gcePersistentDisk": ("pdName",), "portworxVolume": ("volumeID",),
           "azureFile": ("secretName", "shareName"), "azureDisk": ("diskName", "diskURI"), "photonPersistentDisk": (
               "pdID",), "vsphereVolume": ("volumePath",), "quobyte": ("registry", "volume"), "scaleIO": (
               "gateway", "system", "volumeName")}
MAX_LUN = 255


def volumes(listed: list[Object], path: str) -> tuple[list[Cause], set[str]]:
    """What is wrong, and the names that mounts may use."""
    found: list[Cause] = []
    seen: set[str] = set()
    for index, volume in enumerate(listed):
        at = f"{path}[{index}]"
        name = volume.get("name") or ""
        if not name:
            found.append(required(f"{at}.name"))
        else:
            faults = names.dns_label(name)
            found += [invalid(f"{at}.name", name, m) for m in faults]
            if name in seen:
                found.append(duplicate(f"{at}.name", name))
        seen.add(name)
        found += _source(volume, at)
    return found, seen


def _source(volume: Object, path: str) -> list[Cause]:
    kinds = [k for k, v in volume.items() if k != "name" and v is not None]
    if not kinds:
        return [required(path, "must specify a volume type")]
    found = [forbidden(f"{path}.{k}", "may not specify more than 1 volume type") for k in kinds[1:]]
    kind, source = kinds[0], volume[kinds[0]]
    at = f"{path}.{kind}"
    found += source_faults(kind, source, at)
    if kind in ("secret", "configMap", "downwardAPI", "projected"):
        found += _mode(source, "defaultMode", at)
    if kind in ("secret", "configMap"):
        found += _items(source.get("items") or (), f"{at}.items")
    elif kind == "downwardAPI":
        found += _downward(source.get("items") or (), f"{at}.items")
    elif kind == "projected":
        found += _projected(source, at)
    return found


def source_faults(kind: str, source: Object, path: str) -> list[Cause]:
    """What a source of a pod's or a persistent volume lacks or says wrong."""
    found = [required(f"{path}.{field}") for field in _NEEDED.get(kind, ()) if not source.get(field)]
    where = source.get("path") or ""
    if kind == "hostPath":
        if ".." in where.split("/"):
            found.append(invalid(f"{path}.path", where, "must not contain '..'"))
        if (source.get("type") or "") not in _HOST_TYPES:
            found.append(not_supported(f"{path}.type", source["type"], _HOST_TYPES))
    elif kind == "nfs" and where and not where.startswith("/"):
        found.append(invalid(f"{path}.path", where, "must be an absolute path"))
    elif kind == "emptyDir" and source.get("sizeLimit") is not None and quantity.parse(source["sizeLimit"]).nano < 0:
        found.append(forbidden(f"{path}.sizeLimit", "SizeLimit field must be a valid resource quantity"))
    elif kind == "iscsi":
        lun, iqn = source.get("lun") or 0, source.get("iqn") or ""
        if not 0 <= lun <= MAX_LUN:
            found.append(invalid(f"{path}.lun", lun, names.in_range(0, MAX_LUN)))
        if iqn and not iqn.startswith(("iqn.", "eui.", "naa.")):
            found.append(invalid(f"{path}.iqn", iqn, "must be valid format"))
    elif kind == "fc":
        wide, names_of = source.get("targetWWNs") or [], source.get("wwids") or []
        if bool(wide) == bool(names_of):
            found.append(required(f"{path}.targetWWNs", "must specify either targetWWNs or wwids, but not both")
                         if not wide else invalid(f"{path}.targetWWNs", wide, "targetWWNs and wwids can not be "
                                                  "specified simultaneously"))
    elif kind == "image" and source.get("pullPolicy") not in (None, "", "Always", "IfNotPresent", "Never"):
        found.append(not_supported(f"{path}.pullPolicy", source["pullPolicy"], ("Always", "IfNotPresent", "Never")))
    elif kind == "csi" and (driver := source.get("driver")):
        found += [invalid(f"{path}.driver", driver, m) for m in names.dns_subdomain(driver.lower())]
    return found


def _mode(source: Object, field: str, path: str) -> list[Cause]:
    mode = source.get(field)
    if mode is None or 0 <= mode <= MODE_MAX:
        return []
    return [invalid(f"{path}.{field}", mode, "must be a number between 0 and 0777 (octal), both inclusive")]


def _items(items: Any, path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, item in enumerate(items):
        at = f"{path}[{index}]"
        found += [required(f"{at}.{field}") for field in ("key", "path") if not item.get(field)]
        if item.get("path"):
            found += _local(item["path"], f"{at}.path")
        found += _mode(item, "mode", at)
    return found


def _local(text: str, path: str) -> list[Cause]:
    """A file's place in a volume that the kubelet writes; names starting with `..` are its own."""
    found = relative_path(text, path)
    if not found and text.startswith(".."):
        found.append(invalid(path, text, "must not start with '..'"))
    return found


def _downward(items: Any, path: str) -> list[Cause]:
    found: list[Cause] = []
    for index, item in enumerate(items):
        at = f"{path}[{index}]"
        if not item.get("path"):
            found.append(required(f"{at}.path"))
        else:
            found += _local(item["path"], f"{at}.path")
        if item.get("fieldRef") is not None:
            found += field_reference(item["fieldRef"], f"{at}.fieldRef", _DOWNWARD)
            if item.get("resourceFieldRef") is not None:
                found.append(invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified "
                                     "simultaneously"))
        elif item.get("resourceFieldRef") is not None:
            reference = item["resourceFieldRef"]
            if not reference.get("containerName"):
                found.append(required(f"{at}.resourceFieldRef.containerName"))
            found += resource_reference(reference, f"{at}.resourceFieldRef")
        else:
            found.append(required(at, "one of fieldRef and resourceFieldRef is required"))
        found += _mode(item, "mode", at)
    return found


def _projected(source: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    files: set[str] = set()
    for index, projection in enumerate(source.get("sources") or ()):
        at = f"{path}.sources[{index}]"
        kinds = [k for k, v in projection.items() if v is not None]
        found += [forbidden(f"{at}.{k}", "may not specify more than 1 volume type") for k in kinds[1:]]
        if not kinds:
            continue
        kind, body = kinds[0], projection[kinds[0]]
        inner = f"{at}.{kind}"
        if kind in ("secret", "configMap"):
            if not body.get("name"):
                found.append(required(f"{inner}.name"))
            found += _items(body.get("items") or (), f"{inner}.items")
        elif kind == "downwardAPI":
            found += _downward(body.get("items") or (), f"{inner}.items")
        elif kind == "serviceAccountToken":
            seconds = body.get("expirationSeconds")
            if seconds is not None and seconds < MIN_TOKEN_SECONDS:
                found.append(invalid(f"{inner}.expirationSeconds", seconds, "may not specify a duration less than 10 "
                                     "minutes"))
            if seconds is not None and seconds > MAX_TOKEN_SECONDS:
                found.append(invalid(f"{inner}.expirationSeconds", seconds, "may not specify a duration larger than "
                                     "2^32 seconds"))
            if not body.get("path"):
                found.append(required(f"{inner}.path"))
            else:
                found += _local(body["path"], f"{inner}.path")
        elif kind == "clusterTrustBundle":
            found += certificates.projection(body, inner)
            found += _local(body["path"], f"{inner}.path") if body.get("path") else [required(f"{inner}.path")]
        elif kind == "podCertificate":
            found += podcertificates.projection(body, inner)
            for field in podcertificates.PATHS:
                if body.get(field):
                    found += _local(body[field], f"{inner}.{field}")
        fresh = _files(kind, body)
        found += [invalid(path, file, "conflicting duplicate paths") for index, file in enumerate(fresh)
                  if file in files or file in fresh[:index]]
        files.update(fresh)
    return found


def _files(kind: str, body: Object) -> list[str]:
    """The places of the files that a source of a projected volume is told to make."""
    listed = body.get("items") or () if kind in ("secret", "configMap", "downwardAPI") else ()
    fields = podcertificates.PATHS if kind == "podCertificate" else ("path",)
    return [p for p in (*(i.get("path") for i in listed), *(body.get(f) for f in fields)) if p]
