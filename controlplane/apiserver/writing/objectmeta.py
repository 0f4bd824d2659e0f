"""What the server owns in an object's metadata, on create and on update.

Owns the rules for uid, creationTimestamp, generation, deletion marks and generated names. Pure: identities and times
are handed in. Whether names and labels are well formed is the strategies' business. Called by the verbs that write.

Upstream: k8s.io/apiserver/pkg/registry/rest/{create,update,meta}.go, apimachinery/pkg/api/validation/objectmeta.go.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import apply
from controlplane.machinery.errors import IMMUTABLE, Cause, Conflict, Invalid, forbidden, invalid, required
from controlplane.machinery.resources import Resource

MAX_GENERATED_BASE = 58  # of a generated name before its five random characters
SERVER = "kube-apiserver"  # who owns the fields of what the server makes
_SERVER_OWNED = ("uid", "creationTimestamp", "selfLink", "resourceVersion", "deletionTimestamp",
                 "deletionGracePeriodSeconds", "generation")


def begin(metadata: dict[str, Any], uid: str, now: str) -> None:
    """Give a new object its identity; what the client claimed of it is dropped (a set generation is kept)."""
    for field in _SERVER_OWNED:
        if field != "generation":
            metadata.pop(field, None)
    metadata["uid"] = uid
    metadata["creationTimestamp"] = now


def found(resource: Resource, obj: dict[str, Any], uid: str, now: str) -> None:
    """Make an object of the server's own a new one, with the server as the owner of its fields."""
    begin(obj["metadata"], uid, now)
    obj["metadata"]["managedFields"] = apply.track_update(None, obj, SERVER, resource.node, now)


def needs_name(kind: str, group: str, metadata: dict[str, Any]) -> None:
    """Raises Invalid when an object has neither a name nor a prefix to make one from."""
    if not metadata.get("name") and not metadata.get("generateName"):
        raise Invalid.of(kind, "", [required("metadata.name", "name or generateName is required")], group)


def generated(prefix: str, suffix: str) -> str:
    return prefix[:MAX_GENERATED_BASE] + suffix


def preconditions(resource: Resource, name: str, metadata: dict[str, Any], stored: dict[str, Any],
                  unconditional: bool) -> None:
    """The optimistic lock of an update: the version and identity the writer saw. Raises Conflict and Invalid."""
    version = metadata.get("resourceVersion")
    if version in (None, "", "0"):
        if not unconditional:
            raise Invalid.of(resource.plural, name, [Cause(
                "FieldValueInvalid", "Invalid value: 0: must be specified for an update", "metadata.resourceVersion")],
                resource.group)
    elif version != stored["resourceVersion"]:
        if not str(version).isdigit():
            raise Invalid.of(resource.kind, name, [invalid("metadata.resourceVersion", version, "must be an integer")],
                             resource.group)
        raise Conflict.of(resource.plural, name, resource.group)
    uid = metadata.get("uid")
    if uid and uid != stored["uid"]:
        raise Conflict.of(resource.plural, name, resource.group,
                          f"Precondition failed: UID in precondition: {uid}, UID in object meta: {stored['uid']}")


def carry(metadata: dict[str, Any], stored: dict[str, Any]) -> list[Cause]:
    """Restore what an update cannot change, in place; what it must not even try is returned."""
    causes = []
    for field in ("uid", "creationTimestamp", "selfLink", "generation"):
        if field in stored:
            metadata[field] = stored[field]
        else:
            metadata.pop(field, None)
    if "generateName" in stored:
        metadata.setdefault("generateName", stored["generateName"])
    if stored.get("deletionTimestamp"):
        metadata["deletionTimestamp"] = stored["deletionTimestamp"]
        grace = stored.get("deletionGracePeriodSeconds")
        if grace is not None:
            if metadata.get("deletionGracePeriodSeconds") not in (None, grace):
                causes.append(invalid("metadata.deletionGracePeriodSeconds", metadata["deletionGracePeriodSeconds"],
                                      IMMUTABLE))
            metadata["deletionGracePeriodSeconds"] = grace
    else:
        for field in ("deletionTimestamp", "deletionGracePeriodSeconds"):
            if metadata.get(field) is not None:
                causes.append(invalid(f"metadata.{field}", metadata[field], IMMUTABLE))
            metadata.pop(field, None)
    return causes + new_finalizers(metadata, stored)


def new_finalizers(metadata: dict[str, Any], stored: dict[str, Any]) -> list[Cause]:
    """An object being deleted takes no new finalizers."""
    if not stored.get("deletionTimestamp"):
        return []
    added = [f for f in metadata.get("finalizers") or [] if f not in (stored.get("finalizers") or [])]
    if not added:
        return []
    shown = "[]string{" + ", ".join(f'"{f}"' for f in added) + "}"
    return [forbidden("metadata.finalizers", "no new finalizers can be added if the object is being deleted, "
                      f"found new finalizers {shown}")]


def finished(obj: dict[str, Any]) -> bool:
    """Whether an object marked for deletion has nothing left to wait for."""
    metadata = obj["metadata"]
    if not metadata.get("deletionTimestamp") or metadata.get("finalizers"):
        return False
    if obj.get("kind") == "Namespace" and obj.get("apiVersion") == "v1":
        return not (obj.get("spec") or {}).get("finalizers")
    return not metadata.get("deletionGracePeriodSeconds")
