"""Validation of resource requirements: what a container, or a pod as a whole, asks for and may use.

Pure. Amounts are quantities as text; that they are any was checked when the body was decoded. Called for pods and
templates, and for what a resize asks.

Upstream: validateResourceRequirements and validatePodResources in k8s.io/kubernetes/pkg/apis/core/validation.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from controlplane.machinery import names, podresources, quantity
from controlplane.machinery.errors import Cause, duplicate, forbidden, invalid, not_supported, required

Object = dict[str, Any]
NEGATIVE, FRACTION = "must be greater than or equal to 0", "must be an integer"
COMPUTE = ("cpu", "memory", "ephemeral-storage")
COUNTED = ("configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets",
           "services", "services.loadbalancers", "services.nodeports")
STANDARD = frozenset((*COMPUTE, *COUNTED, *(f"{kind}.{name}" for kind in ("requests", "limits") for name in COMPUTE),
                      "storage", "requests.storage"))
HUGE = "hugepages-"
_FOR_PODS = ("cpu", HUGE, "memory")


def native(name: str) -> bool:
    """Whether a resource is Kubernetes' own, not somebody's extension."""
    return "/" not in name or "kubernetes.io/" in name


def extended(name: str) -> bool:
    return not native(name) and not name.startswith("requests.") and not names.qualified_name(f"requests.{name}")


def overcommits(name: str) -> bool:
    return native(name) and not name.startswith(HUGE)


def resource_name(name: str, path: str) -> list[Cause]:
    """The name of any resource."""
    if faults := names.qualified_name(name):
        return [invalid(path, name, m) for m in faults]
    if "/" in name or name in STANDARD or name.startswith((HUGE, f"requests.{HUGE}")):
        return []
    return [invalid(path, name, "must be a standard resource type or fully qualified")]


def of_container(name: str, path: str) -> list[Cause]:
    found = resource_name(name, path)
    if "/" not in name:
        if name not in COMPUTE and not name.startswith(HUGE):
            found.append(invalid(path, name, "must be a standard resource for containers"))
    elif not native(name) and not extended(name):
        found.append(invalid(path, name, "doesn't follow extended resource name standard"))
    return found


def _of_pod(name: str, path: str) -> list[Cause]:
    found = resource_name(name, path)
    return found if found or podresources.supported(name) else [not_supported(path, name, _FOR_PODS)]


def amount(name: str, text: Any, path: str) -> list[Cause]:
    """How much of a resource."""
    found = quantity.parse(text)
    faults = [invalid(path, str(found), NEGATIVE)] if found.nano < 0 else []
    if (name in COUNTED or extended(name)) and found.nano % 10**9:
        faults.append(invalid(path, str(found), FRACTION))
    return faults


def requirements(resources: Object, path: str, claims: Collection[str] | None = None,
                 rule: Callable[[str, str], list[Cause]] = of_container) -> list[Cause]:
    """Limits and requests: known names, no negative amounts, requests within limits. `claims`: the names of the pod's
    ResourceClaims that may be asked for, None where nobody looks."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    found: list[Cause] = []
    for kind, listed in (("limits", limits), ("requests", requests)):
        for name, text in listed.items():
            at = f"{path}.{kind}[{name}]"
            found += rule(name, at) + amount(name, text, at)
            if kind == "requests":
                found += _within(name, text, limits, path)
            if name.startswith(HUGE) and not _divides(name, text):
                found.append(invalid(at, str(text), f"{text} is not positive integer multiple of {name}"))
    if any(n.startswith(HUGE) for n in (*limits, *requests)) and not {"cpu", "memory"} & {*limits, *requests}:
        found.append(forbidden(path, "HugePages require cpu or memory"))
    return found + (_claimed(resources.get("claims") or (), claims, f"{path}.claims") if claims is not None else [])


def _within(name: str, text: Any, limits: Object, path: str) -> list[Cause]:
    if name not in limits:
        return [] if overcommits(name) else [
            required(f"{path}.limits", "Limit must be set for non overcommitable resources")]
    asked, allowed = quantity.parse(text), quantity.parse(limits[name])
    if asked != allowed and not overcommits(name):
        return [invalid(f"{path}.requests", str(text), f"must be equal to {name} limit of {limits[name]}")]
    return [invalid(f"{path}.requests", str(text), f"must be less than or equal to {name} limit of {limits[name]}")
            ] if asked > allowed else []


def _divides(name: str, text: Any) -> bool:
    try:
        page = quantity.parse(name.removeprefix(HUGE)).nano
    except ValueError:
        return False
    return page > 0 and quantity.parse(text).nano % page == 0


def _claimed(asked: Collection[Object], claims: Collection[str], path: str) -> list[Cause]:
    """The claims, or requests of claims, that a container uses: each once, each one of the pod's."""
    found: list[Cause] = []
    seen: set[str] = set()
    for index, claim in enumerate(asked):
        name, request, at = claim.get("name") or "", claim.get("request") or "", f"{path}[{index}]"
        if not name:
            found.append(required(at))
            continue
        key = f"{name}/{request}" if request else name
        found += [invalid(f"{at}.request", request, m) for m in (names.dns_label(request) if request else ())]
        if name in seen or key in seen or (not request and any(s.startswith(f"{name}/") for s in seen)):
            found.append(duplicate(at, name if name in seen else key))
        seen.add(key)
        if name not in claims:
            listed = ": " + ", ".join(sorted(claims)) if claims else " which is empty"
            found.append(Cause("FieldValueNotFound", f'Not found: "{name}": must be one of the names in '
                               f"pod.spec.resourceClaims{listed}", at))
    return found


def whole(spec: Object, path: str) -> list[Cause]:
    """What a pod states for itself as a whole, beside what its containers do."""
    resources = spec.get("resources")
    if resources is None:
        return []
    found = [forbidden(f"{path}.claims", "claims cannot be set for Resources at pod-level")] \
        if resources.get("claims") is not None else []
    found += requirements(resources, path, rule=_of_pod)
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for kind, stated in (("requests", requests), ("limits", limits)):
        for name, total in podresources.aggregate(spec, kind).items():
            counts = kind == "requests" or name.startswith(HUGE)  # limits of cpu and memory may add up to more
            if name in stated and counts and total > quantity.parse(stated[name]):
                found.append(invalid(f"{path}.{kind}[{name}]", str(stated[name]), "must be greater than or equal to "
                                     f"aggregate container {kind} of {total}"))
    for index, container in enumerate(spec.get("containers") or ()):
        for name, most in podresources.of_container(container, "limits").items():
            if name in limits and most > quantity.parse(limits[name]):
                found.append(invalid(f"{path}.containers[{index}][{name}].limits", str(most),
                                     f"must be less than or equal to pod limits of {limits[name]}"))
    return found
