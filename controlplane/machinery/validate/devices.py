"""Validation of resource.k8s.io: device classes, claims and their templates, and the slices drivers publish.

Upstream: k8s.io/kubernetes/pkg/apis/resource/validation.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery import names
from controlplane.machinery.errors import (
    IMMUTABLE,
    Cause,
    duplicate,
    forbidden,
    invalid,
    not_supported,
    required,
    too_many,
)
from controlplane.machinery.validate.requirements import extended

Object = dict[str, Any]
MAX_SELECTORS, MAX_REQUESTS, MAX_CONSTRAINTS, MAX_CONFIGS, MAX_SUBREQUESTS = 32, 32, 32, 32, 8
MAX_DEVICES = 128
MAX_EXPRESSION = 10 << 10
_MODES = ("All", "ExactCount")
_PLACES = ("allNodes", "nodeName", "nodeSelector", "perDeviceNodeSelection")


def _label(text: str, path: str) -> list[Cause]:
    return [invalid(path, text, m) for m in names.dns_label(text)] if text else [required(path)]


def _driver(text: str, path: str) -> list[Cause]:
    return [invalid(path, text, m) for m in names.dns_subdomain(text.lower())] if text else [required(path)]


def _selectors(listed: list[Object], path: str) -> list[Cause]:
    if len(listed) > MAX_SELECTORS:
        return [too_many(path, len(listed), MAX_SELECTORS)]
    found: list[Cause] = []
    for index, selector in enumerate(listed):
        at = f"{path}[{index}].cel"
        expression = (selector.get("cel") or {}).get("expression") or ""
        if selector.get("cel") is None:
            found.append(required(at))
        elif not expression:
            found.append(required(f"{at}.expression"))
        elif len(expression.encode()) > MAX_EXPRESSION:
            found.append(Cause("FieldValueTooLong", f"Too long: may not be more than {MAX_EXPRESSION} bytes",
                               f"{at}.expression"))
    return found


def _configs(listed: list[Object], path: str) -> list[Cause]:
    if len(listed) > MAX_CONFIGS:
        return [too_many(path, len(listed), MAX_CONFIGS)]
    found: list[Cause] = []
    for index, config in enumerate(listed):
        opaque = config.get("opaque")
        at = f"{path}[{index}].opaque"
        if opaque is None:
            found.append(required(at))
            continue
        found += _driver(opaque.get("driver") or "", f"{at}.driver")
        if not opaque.get("parameters"):
            found.append(required(f"{at}.parameters"))
    return found


def device_class(obj: Object) -> list[Cause]:
    spec, at = obj.get("spec") or {}, "spec.extendedResourceName"
    name = spec.get("extendedResourceName")
    found = [invalid(at, name, "must be a valid extended resource name")] if name and not extended(name) else []
    return found + _selectors(spec.get("selectors") or [], "spec.selectors") + _configs(
        spec.get("config") or [], "spec.config")


def claim(obj: Object) -> list[Cause]:
    return _claim_spec(obj.get("spec") or {}, "spec")


def claim_template(obj: Object) -> list[Cause]:
    return _claim_spec((obj.get("spec") or {}).get("spec") or {}, "spec.spec")


def _claim_spec(spec: Object, path: str) -> list[Cause]:
    devices, at = spec.get("devices") or {}, f"{path}.devices"
    requests = devices.get("requests") or []
    if len(requests) > MAX_REQUESTS:
        return [too_many(f"{at}.requests", len(requests), MAX_REQUESTS)]
    found: list[Cause] = []
    known: set[str] = set()
    for index, request in enumerate(requests):
        where, name = f"{at}.requests[{index}]", request.get("name") or ""
        found += _label(name, f"{where}.name")
        if name in known:
            found.append(duplicate(f"{where}.name", name))
        known.add(name)
        found += _request(request, where)
        known |= {f"{name}/{s.get('name')}" for s in request.get("firstAvailable") or ()}
    constraints = devices.get("constraints") or []
    if len(constraints) > MAX_CONSTRAINTS:
        found.append(too_many(f"{at}.constraints", len(constraints), MAX_CONSTRAINTS))
    for kind, listed in (("constraints", constraints), ("config", devices.get("config") or [])):
        for index, part in enumerate(listed):
            found += [invalid(f"{at}.{kind}[{index}].requests[{i}]", name, "must be the name of a request in the claim "
                              "or the name of a request and a subrequest separated by '/'")
                      for i, name in enumerate(part.get("requests") or ()) if name not in known]
            if kind == "constraints" and not part.get("matchAttribute") and not part.get("distinctAttribute"):
                found.append(required(f"{at}.{kind}[{index}].matchAttribute"))
    return found + _configs(devices.get("config") or [], f"{at}.config")


def _request(request: Object, path: str) -> list[Cause]:
    exactly, first = request.get("exactly"), request.get("firstAvailable") or []
    if exactly is None and not first:
        return [required(path, "exactly one of `exactly` or `firstAvailable` is required")]
    if exactly is not None and first:
        return [invalid(path, "", "exactly one of `exactly` or `firstAvailable` is required, but multiple fields are "
                        "set")]
    if exactly is not None:
        return _exact(exactly, f"{path}.exactly")
    if len(first) > MAX_SUBREQUESTS:
        return [too_many(f"{path}.firstAvailable", len(first), MAX_SUBREQUESTS)]
    found: list[Cause] = []
    for index, part in enumerate(first):
        found += _label(part.get("name") or "", f"{path}.firstAvailable[{index}].name")
        found += _exact(part, f"{path}.firstAvailable[{index}]")
    return found


def _exact(part: Object, path: str) -> list[Cause]:
    found: list[Cause] = []
    if not part.get("deviceClassName"):
        found.append(required(f"{path}.deviceClassName"))
    else:
        found += [invalid(f"{path}.deviceClassName", part["deviceClassName"], m)
                  for m in names.dns_subdomain(part["deviceClassName"])]
    found += _selectors(part.get("selectors") or [], f"{path}.selectors")
    mode, count = part.get("allocationMode") or "", part.get("count") or 0
    if mode not in _MODES:
        found.append(not_supported(f"{path}.allocationMode", mode, _MODES))
    elif mode == "All" and count:
        found.append(invalid(f"{path}.count", count, "must not be specified when allocationMode is 'All'"))
    elif mode == "ExactCount" and count <= 0:
        found.append(invalid(f"{path}.count", count, "must be greater than zero"))
    return found


def spec_changes(new: Object, old: Object) -> list[Cause]:
    """Of claims and their templates, whose specs are fixed."""
    return [] if new.get("spec") == old.get("spec") else [invalid("spec", new.get("spec"), IMMUTABLE)]


def resource_slice(obj: Object) -> list[Cause]:
    spec = obj.get("spec") or {}
    found = _driver(spec.get("driver") or "", "spec.driver")
    pool = spec.get("pool") or {}
    if not pool.get("name"):
        found.append(required("spec.pool.name"))
    if (pool.get("resourceSliceCount") or 0) <= 0:
        found.append(invalid("spec.pool.resourceSliceCount", pool.get("resourceSliceCount") or 0,
                             "must be greater than zero"))
    places = [f for f in _PLACES if spec.get(f)]
    if not places:
        found.append(required("spec", "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` "
                              "is required"))
    elif len(places) > 1:
        found.append(invalid("spec", "{" + ", ".join(places) + "}", "exactly one of `nodeName`, `nodeSelector`, "
                             "`allNodes`, `perDeviceNodeSelection` is required, but multiple fields are set"))
    devices = spec.get("devices") or []
    if len(devices) > MAX_DEVICES:
        found.append(too_many("spec.devices", len(devices), MAX_DEVICES))
    seen: set[str] = set()
    for index, device in enumerate(devices):
        name = device.get("name") or ""
        found += _label(name, f"spec.devices[{index}].name")
        if name in seen:
            found.append(duplicate(f"spec.devices[{index}].name", name))
        seen.add(name)
    if devices and spec.get("sharedCounters"):
        found.append(forbidden("spec", "only one of `sharedCounters` or `devices` is allowed"))
    return found


def slice_changes(new: Object, old: Object) -> list[Cause]:
    after, before = new.get("spec") or {}, old.get("spec") or {}
    found = [invalid(f"spec.{f}", after.get(f), IMMUTABLE) for f in ("driver", "nodeName")
             if after.get(f) != before.get(f)]
    if (after.get("pool") or {}).get("name") != (before.get("pool") or {}).get("name"):
        found.append(invalid("spec.pool.name", (after.get("pool") or {}).get("name") or "", IMMUTABLE))
    return found
