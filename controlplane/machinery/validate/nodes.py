"""Validation of the cluster's own records: Nodes, Leases, Events.

Upstream: ValidateNode and ValidateEventCreate in k8s.io/kubernetes/pkg/apis/core/validation, pkg/apis/coordination.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import IMMUTABLE, Cause, duplicate, forbidden, invalid, not_supported, required
from controlplane.machinery.validate.requirements import amount

Object = dict[str, Any]
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_EVENT_TYPES = ("Normal", "Warning")
_DEPRECATED_FIELDS = ("deprecatedSource", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount")
MAX_WORD, MAX_NOTE = 128, 1024
_POSITIVE = "must be greater than 0"


def node(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = taints(spec.get("taints") or [], "spec.taints")
    ranges = spec.get("podCIDRs") or []
    for index, text in enumerate(ranges):
        found += [invalid(f"spec.podCIDRs[{index}]", text, m) for m in names.cidr(text)]
    if ranges and spec.get("podCIDR") and ranges[0] != spec["podCIDR"]:
        found.append(invalid("spec.podCIDRs[0]", ranges[0], "must match `podCIDR`"))
    if len(ranges) > len({":" in text for text in ranges}):
        found.append(invalid("spec.podCIDRs", ranges, "may specify no more than one CIDR for each IP family"))
    found += [duplicate(f"spec.podCIDRs[{i}]", text) for i, text in enumerate(ranges) if text in ranges[:i]]
    return found + _amounts(obj)


def _amounts(obj: Object) -> list[Cause]:
    status = obj.get("status") or {}
    return [cause for field in ("capacity", "allocatable") for name, text in (status.get(field) or {}).items()
            for cause in amount(name, text, f"status.{field}.{name}")]


def taints(listed: list[Object], path: str) -> list[Cause]:
    found: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate(listed):
        at = f"{path}[{index}]"
        key, value, effect = taint.get("key") or "", taint.get("value") or "", taint.get("effect") or ""
        found += [invalid(f"{at}.key", key, m) for m in names.label_key(key)]
        found += [invalid(f"{at}.value", value, ";".join(m)) for m in [names.label_value(value)] if m]
        if not effect:
            found.append(required(f"{at}.effect"))
        elif effect not in EFFECTS:
            found.append(not_supported(f"{at}.effect", effect, EFFECTS))
        if (key, effect) in seen:
            found.append(Cause("FieldValueDuplicate", duplicate(at, taint).message + ": taints must be unique by key "
                               "and effect pair", at))
        seen.add((key, effect))
    return found


def node_changes(new: Object, old: Object) -> list[Cause]:
    """Pod ranges and the provider's id are set once; no address is told twice."""
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found: list[Cause] = []
    ranges = before.get("podCIDRs") or ([before["podCIDR"]] if before.get("podCIDR") else [])
    wanted = after.get("podCIDRs") or ([after["podCIDR"]] if after.get("podCIDR") else [])
    if ranges and wanted != ranges:
        found.append(forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid"))
    if before.get("providerID") and after.get("providerID") != before["providerID"]:
        found.append(forbidden("spec.providerID", "node updates may not change providerID except from \"\" to valid"))
    if (after.get("externalID") or "") != (before.get("externalID") or ""):
        found.append(forbidden("spec.externalID", "may not be updated"))
    addresses = (new.get("status") or {}).get("addresses") or []
    return found + [duplicate(f"status.addresses[{i}]", a) for i, a in enumerate(addresses) if a in addresses[:i]]


def lease(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found: list[Cause] = []
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        found.append(invalid("spec.leaseDurationSeconds", seconds, _POSITIVE))
    if transitions is not None and transitions < 0:
        found.append(invalid("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return found


def event(obj: Object) -> list[Cause]:
    """An event lives where the object it is about lives; about a cluster's object, in `default`."""
    found = _event_place(obj, "involvedObject")
    kind = obj.get("type")
    if obj.get("eventTime") and kind not in _EVENT_TYPES:
        found.append(invalid("type", kind or "", "has invalid value: must be Normal or Warning"))
    return found


def event_v1(obj: Object) -> list[Cause]:
    """An event as events.k8s.io wants it: who did what, and when. One that an older client began stays as it is."""
    found = _event_place(obj, "regarding")
    if _old(obj):
        return found
    if not obj.get("eventTime"):
        found.append(required("eventTime"))
    series = obj.get("series")
    if series is not None and (series.get("count") or 0) < 2:
        found.append(invalid("series.count", series.get("count") or 0, "should be at least 2"))
    if series is not None and not series.get("lastObservedTime"):
        found.append(required("series.lastObservedTime"))
    controller = obj.get("reportingController") or ""
    found += [invalid("reportingController", controller, m) for m in names.qualified_name(controller)] \
        if controller else [required("reportingController")]
    for field in ("reportingInstance", "action", "reason"):
        text = obj.get(field) or ""
        if not text:
            found.append(required(field))
        elif len(text) > MAX_WORD:
            found.append(invalid(field, text, f"can have at most {MAX_WORD} characters"))
    if len(obj.get("note") or "") > MAX_NOTE:
        found.append(invalid("note", obj["note"], f"can have at most {MAX_NOTE} characters"))
    if obj.get("type") not in _EVENT_TYPES:
        found.append(invalid("type", obj.get("type") or "", "has invalid value: "))
    return found


def _old(obj: Object) -> bool:
    """Whether an event was written by way of the core group, which asks for less."""
    return any(obj.get(field) for field in _DEPRECATED_FIELDS)


def _event_place(obj: Object, field: str) -> list[Cause]:
    namespace = (obj.get("metadata") or {}).get("namespace") or ""
    about = (obj.get(field) or {}).get("namespace") or ""
    if (about and about == namespace) or (not about and namespace in ("default", "kube-system")):
        return []
    return [invalid("involvedObject.namespace", about, "does not match event.namespace")]


# What upstream's errors call fields of events.k8s.io: by the names of the core group, whose objects it stores.
_STORED_NAMES = {"regarding": "involvedObject", "note": "message", "deprecatedSource": "source",
                 "deprecatedFirstTimestamp": "firstTimestamp", "deprecatedLastTimestamp": "lastTimestamp",
                 "deprecatedCount": "count"}


def event_v1_changes(new: Object, old: Object) -> list[Cause]:
    """Its series may grow; what happened does not change."""
    fixed = ("regarding", "reason", "note", "type", "eventTime", "action", "related", "reportingController",
             "reportingInstance", *_DEPRECATED_FIELDS)
    return [invalid(_STORED_NAMES.get(field, field), new.get(field), IMMUTABLE) for field in fixed
            if (new.get(field) or None) != (old.get(field) or None)]
