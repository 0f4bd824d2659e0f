"""Validation of storage.k8s.io: classes, CSI drivers and what they tell of nodes, capacities, attachments.

Upstream: k8s.io/kubernetes/pkg/apis/storage/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names, quantity
from controlplane.machinery.errors import (
    IMMUTABLE,
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_long,
    too_many,
)
from controlplane.machinery.validate.metadata import label_selector

Object = dict[str, Any]
MAX_PARAMETERS, MAX_PARAMETERS_BYTES = 512, 256 << 10
MAX_DRIVER_NAME = 63
MIN_TOKEN_SECONDS = 600
MAX_NODE_ID = 192
_GROUP_POLICIES = ("File", "None", "ReadWriteOnceWithFSType")
_LIFECYCLES = ("Ephemeral", "Persistent")
_BINDING = ("Immediate", "WaitForFirstConsumer")


def _parameters(parameters: dict[str, str], path: str) -> list[Cause]:
    if len(parameters) > MAX_PARAMETERS:
        return [too_many(path, len(parameters), MAX_PARAMETERS)]
    found = []
    if "" in parameters:
        found.append(invalid(path, "", "field can not be empty."))
    if sum(len(k.encode()) + len(v.encode()) for k, v in parameters.items()) > MAX_PARAMETERS_BYTES:
        found.append(too_long(path, MAX_PARAMETERS_BYTES))
    return found


def _driver(name: str, path: str) -> list[Cause]:
    if not name:
        return [required(path)]
    if len(name) > MAX_DRIVER_NAME:
        return [too_long(path, MAX_DRIVER_NAME)]
    return [invalid(path, name, m) for m in names.dns_subdomain(name.lower())]


def storage_class(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    provisioner = obj.get("provisioner") or ""
    if not provisioner:
        found.append(required("provisioner"))
    else:
        found += [invalid("provisioner", provisioner, m) for m in names.qualified_name(provisioner.lower())]
    found += _parameters(obj.get("parameters") or {}, "parameters")
    if obj.get("reclaimPolicy") not in ("Delete", "Retain"):
        found.append(not_supported("reclaimPolicy", obj.get("reclaimPolicy") or "", ("Delete", "Retain")))
    if obj.get("volumeBindingMode") is None:
        found.append(required("volumeBindingMode"))
    elif obj["volumeBindingMode"] not in _BINDING:
        found.append(not_supported("volumeBindingMode", obj["volumeBindingMode"], _BINDING))
    for index, term in enumerate(obj.get("allowedTopologies") or ()):
        for position, expression in enumerate(term.get("matchLabelExpressions") or ()):
            at = f"allowedTopologies[{index}].matchLabelExpressions[{position}]"
            found += [invalid(f"{at}.key", expression.get("key") or "", m)
                      for m in names.label_key(expression.get("key") or "")]
            if not expression.get("values"):
                found.append(required(f"{at}.values"))
    return found


def storage_class_changes(new: Object, old: Object) -> list[Cause]:
    found = [forbidden(field, f"updates to {field} are forbidden.")
             for field in ("parameters", "provisioner", "reclaimPolicy")
             if (new.get(field) or None) != (old.get(field) or None)]
    if new.get("volumeBindingMode") != old.get("volumeBindingMode"):
        found.append(invalid("volumeBindingMode", new.get("volumeBindingMode"), IMMUTABLE))
    return found


def attributes_class(obj: Object) -> list[Cause]:
    found = _driver(obj.get("driverName") or "", "driverName")
    parameters = obj.get("parameters") or {}
    return found + (_parameters(parameters, "parameters") if parameters else [
        required("parameters", "must contain at least one key/value pair")])


def attributes_class_changes(new: Object, old: Object) -> list[Cause]:
    return [forbidden(field, f"updates to {field} are forbidden.") for field in ("driverName", "parameters")
            if new.get(field) != old.get(field)]


def csi_driver(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = _driver((obj.get("metadata") or {}).get("name") or "", "metadata.name")
    policy = spec.get("fsGroupPolicy")
    if policy is not None and policy not in _GROUP_POLICIES:
        found.append(not_supported("spec.fsGroupPolicy", policy, _GROUP_POLICIES))
    for index, mode in enumerate(spec.get("volumeLifecycleModes") or ()):
        if mode not in _LIFECYCLES:
            found.append(not_supported(f"spec.volumeLifecycleModes[{index}]", mode, _LIFECYCLES))
    audiences: set[str] = set()
    for index, token in enumerate(spec.get("tokenRequests") or ()):
        at = f"spec.tokenRequests[{index}]"
        audience, seconds = token.get("audience") or "", token.get("expirationSeconds")
        if audience in audiences:
            found.append(duplicate(f"{at}.audience", audience))
        audiences.add(audience)
        if seconds is not None and seconds < MIN_TOKEN_SECONDS:
            found.append(invalid(f"{at}.expirationSeconds", seconds, "may not specify a duration less than 10 minutes"))
        if seconds is not None and seconds > 1 << 32:
            found.append(invalid(f"{at}.expirationSeconds", seconds, "may not specify a duration larger than 2^32 "
                                 "seconds"))
    return found


def csi_driver_changes(new: Object, old: Object) -> list[Cause]:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    return [invalid(f"spec.{field}", after.get(field), IMMUTABLE)
            for field in ("attachRequired", "volumeLifecycleModes") if after.get(field) != before.get(field)]


def csi_node(obj: Object) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, driver in enumerate((obj.get("spec") or {}).get("drivers") or ()):
        at = f"spec.drivers[{index}]"
        name, node = driver.get("name") or "", driver.get("nodeID") or ""
        found += _driver(name, f"{at}.name")
        if name in seen:
            found.append(duplicate(f"{at}.name", name))
        seen.add(name)
        if not node:
            found.append(required(f"{at}.nodeID"))
        elif len(node) > MAX_NODE_ID:
            found.append(invalid(f"{at}.nodeID", node, f"must be {MAX_NODE_ID} characters or less"))
        keys = driver.get("topologyKeys") or []
        for key in keys:
            found += [invalid(f"{at}.topologyKeys", key, m) for m in names.qualified_name(key)]
        if len(set(keys)) != len(keys):
            found.append(duplicate(f"{at}.topologyKeys", next(k for k in keys if keys.count(k) > 1)))
        count = (driver.get("allocatable") or {}).get("count")
        if count is not None and count < 0:
            found.append(invalid(f"{at}.allocatable.count", count, "must be greater than or equal to 0"))
    return found


def csi_node_changes(new: Object, old: Object) -> list[Cause]:
    """A driver that stays may only change how much it can take."""
    after = {d.get("name"): {**d, "allocatable": None} for d in (new.get("spec") or {}).get("drivers") or ()}
    return [invalid("spec.drivers", driver, IMMUTABLE) for driver in (old.get("spec") or {}).get("drivers") or ()
            if after.get(driver.get("name"), {**driver, "allocatable": None}) != {**driver, "allocatable": None}]


def storage_capacity(obj: Object) -> list[Cause]:
    found = [invalid("storageClassName", obj.get("storageClassName") or "", m)
             for m in names.dns_subdomain(obj.get("storageClassName") or "")]
    if obj.get("nodeTopology") is not None:
        found += label_selector(obj["nodeTopology"], "nodeTopology")
    for field in ("capacity", "maximumVolumeSize"):
        if obj.get(field) is not None and quantity.parse(obj[field]).nano < 0:
            found.append(invalid(field, str(obj[field]), "must be greater than or equal to 0"))
    return found


def storage_capacity_changes(new: Object, old: Object) -> list[Cause]:
    return [invalid(field, new.get(field), IMMUTABLE) for field in ("nodeTopology", "storageClassName")
            if new.get(field) != old.get(field)]


def volume_attachment(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = _driver(spec.get("attacher") or "", "spec.attacher")
    source = spec.get("source") or {}
    inline, name = source.get("inlineVolumeSpec"), source.get("persistentVolumeName")
    if inline is None and not name:
        found.append(required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName"
                              if name is None else ""))
    elif inline is not None and name is not None:
        found.append(forbidden("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
    node = spec.get("nodeName") or ""
    found += [invalid("spec.nodeName", node, m) for m in names.dns_subdomain(node)] if node else [
        required("spec.nodeName")]
    return found


def volume_attachment_changes(new: Object, old: Object) -> list[Cause]:
    return [] if new.get("spec") == old.get("spec") else [invalid("spec", new.get("spec"), IMMUTABLE)]
