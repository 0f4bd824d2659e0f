"""What one object uses of a ResourceQuota: counts, compute resources, storage; and which quotas it falls under. Pure.

Owns the evaluators per kind (Pods, Services, PersistentVolumeClaims, everything else counts once), the scopes and the
words in which requests are refused. Shared by admission, which reserves, and by the controller, which recounts, so that
both always agree. Time comes in as an argument: a Pod stuck in its deletion stops to count.

Upstream: k8s.io/kubernetes/pkg/quota/v1/evaluator/core and k8s.io/apiserver/pkg/quota/v1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from controlplane.machinery import podfacts, podresources
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.podresources import Amounts, added
from controlplane.machinery.quantity import Quantity

Object = dict[str, Any]
ONE = Quantity(10**9)
NONE = Quantity(0)
# Kinds that are counted under their own name too, as before `count/…` was invented.
_PLAIN = ("configmaps", "persistentvolumeclaims", "pods", "replicationcontrollers", "resourcequotas", "secrets",
          "services")
_COMPUTE = ("cpu", "memory", "ephemeral-storage")
_EVERY_CONTAINER = ("cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory")
_CLASS_SUFFIXES = (".storageclass.storage.k8s.io/requests.storage",
                   ".storageclass.storage.k8s.io/persistentvolumeclaims")
CLASS_ANNOTATION = "volume.beta.kubernetes.io/storage-class"


def _whole(number: int) -> Quantity:
    return Quantity(number * 10**9)


# --- what an object uses -----------------------------------------------------------------------------------------

def of(resource: str, obj: Object, now: float) -> Amounts:
    """All an object of the resource (`pods`, `deployments.apps`) may be charged for."""
    used: Amounts = {f"count/{resource}": ONE}
    if resource in _PLAIN and resource != "pods":
        used[resource] = ONE
    if resource == "pods":
        if not ended(obj, now):
            used.update(compute(podresources.requests(obj, resizing=True), podresources.limits(obj, resizing=True)))
            used["pods"] = ONE
    elif resource == "services":
        used.update(_service(obj))
    elif resource == "persistentvolumeclaims":
        used.update(_claim(obj))
    return used


def ended(pod: Object, now: float) -> bool:
    """Whether a Pod holds no compute resources any more: finished, or past the time its deletion gave it."""
    if podfacts.finished(pod):
        return True
    metadata = pod["metadata"]
    deleted, grace = metadata.get("deletionTimestamp"), metadata.get("deletionGracePeriodSeconds")
    return bool(deleted and grace is not None and now > parse_rfc3339(deleted) + grace)


def compute(requests: Amounts, limits: Amounts) -> Amounts:
    """Requests and limits under the names quotas use for them."""
    used: Amounts = {}
    for name, value in requests.items():
        if name in _COMPUTE or name.startswith("hugepages-"):
            used[name] = used[f"requests.{name}"] = value
        elif _extended(name):
            used[f"requests.{name}"] = value
    for name, value in limits.items():
        if name in _COMPUTE:
            used[f"limits.{name}"] = value
    return used


def _extended(name: str) -> bool:
    return "/" in name and not name.startswith("requests.") and "kubernetes.io/" not in name


def _service(service: Object) -> Amounts:
    spec = service.get("spec") or {}
    ports = spec.get("ports") or []
    kind = spec.get("type")
    if kind == "NodePort":
        return {"services.nodeports": _whole(len(ports)), "services.loadbalancers": NONE}
    if kind == "LoadBalancer":
        given = spec.get("allocateLoadBalancerNodePorts", True) is not False
        return {"services.nodeports": _whole(len(ports) if given else sum(1 for p in ports if p.get("nodePort"))),
                "services.loadbalancers": ONE}
    return {"services.nodeports": NONE, "services.loadbalancers": NONE}


def _claim(claim: Object) -> Amounts:
    spec = claim.get("spec") or {}
    annotations = claim["metadata"].get("annotations") or {}
    name = annotations.get(CLASS_ANNOTATION) or spec.get("storageClassName") or ""
    used: Amounts = {}
    if name:
        used[name + _CLASS_SUFFIXES[1]] = ONE
    asked = podresources.of_container(spec, "requests").get("storage")
    if asked is not None:
        used["requests.storage"] = asked
        if name:
            used[name + _CLASS_SUFFIXES[0]] = asked
    return used


def resource_of(name: str, known: Callable[[str], bool]) -> str:
    """The resource whose objects use up the quota's resource `name`: `pods` for `limits.cpu`; "" when none does.

    `known` tells whether a `count/…` names a served resource."""
    if name.startswith("count/"):
        counted = name.removeprefix("count/")
        return counted if known(counted) else ""
    if name in _PLAIN:
        return name
    if name.startswith("services."):
        return "services" if name in ("services.nodeports", "services.loadbalancers") else ""
    if name == "requests.storage" or name.endswith(_CLASS_SUFFIXES):
        return "persistentvolumeclaims"
    bare = name.removeprefix("requests.").removeprefix("limits.")
    if bare in _COMPUTE or bare.startswith("hugepages-"):
        return "pods"
    return "pods" if name.startswith("requests.") and _extended(bare) else ""


# --- which quotas count it -----------------------------------------------------------------------------------------

def scopes(quota: Object) -> list[Object]:
    """The requirements of a quota's scopes and scopeSelector, in one form."""
    spec = quota.get("spec") or {}
    plain = [{"scopeName": name, "operator": "Exists"} for name in spec.get("scopes") or []]
    return [*plain, *((spec.get("scopeSelector") or {}).get("matchExpressions") or [])]


def in_scope(quota: Object, resource: str, obj: Object) -> bool:
    """Whether the object falls under every scope of the quota; scopes speak of Pods (and volume classes) alone."""
    wanted = scopes(quota)
    if not wanted:
        return True
    return resource == "pods" and all(_scope(requirement, obj.get("spec") or {}) for requirement in wanted)


def _scope(requirement: Mapping[str, Any], spec: Object) -> bool:
    name = requirement.get("scopeName")
    deadline = spec.get("activeDeadlineSeconds")
    if name == "Terminating":
        return deadline is not None and deadline >= 0
    if name == "NotTerminating":
        return not (deadline is not None and deadline >= 0)
    if name in ("BestEffort", "NotBestEffort"):
        return best_effort(spec) == (name == "BestEffort")
    if name == "CrossNamespacePodAffinity":
        return _crosses(spec)
    if name != "PriorityClass":
        return False
    held, operator = spec.get("priorityClassName") or "", requirement.get("operator")
    values = requirement.get("values") or []
    if operator == "Exists":
        return bool(held)
    if operator == "DoesNotExist":
        return not held
    return bool(held) and held in values if operator == "In" else held not in values


def best_effort(spec: Object) -> bool:
    """Whether a Pod asks for no cpu and memory at all."""
    asking = [spec] if podresources.whole(spec) else [*(spec.get("containers") or []),
                                                      *(spec.get("initContainers") or [])]
    return not any(amounts.get(name) for holder in asking for field in ("requests", "limits")
                   for amounts in [podresources.of_container(holder, field)] for name in ("cpu", "memory"))


def _crosses(spec: Object) -> bool:
    affinity = spec.get("affinity") or {}
    for field in ("podAffinity", "podAntiAffinity"):
        part = affinity.get(field) or {}
        terms = [*(part.get("requiredDuringSchedulingIgnoredDuringExecution") or []),
                 *(t.get("podAffinityTerm") or {}
                   for t in part.get("preferredDuringSchedulingIgnoredDuringExecution") or [])]
        if any(term.get("namespaces") or term.get("namespaceSelector") is not None for term in terms):
            return True
    return False


# --- words ----------------------------------------------------------------------------------------------------------

def unstated(pod: Object, limited: Iterable[str]) -> str:
    """The complaint about containers that leave out what a quota limits, "" when they state it all."""
    wanted = [name for name in _EVERY_CONTAINER if name in set(limited)]
    spec = pod.get("spec") or {}
    if podresources.whole(spec):
        return ""
    texts = []
    for name in wanted:
        lacking = sorted({c.get("name", "") for c in (*(spec.get("containers") or []),
                                                      *(spec.get("initContainers") or []))
                          if name not in compute(podresources.of_container(c, "requests"),
                                                 podresources.of_container(c, "limits"))})
        if lacking:
            texts.append(f"{name} for: {','.join(lacking)}")
    return "must specify " + "; ".join(texts) if texts else ""


def printed(amounts: Mapping[str, Quantity]) -> str:
    """`cpu=1,pods=2`."""
    return ",".join(f"{name}={amounts[name]}" for name in sorted(amounts))


def exceeded(name: str, delta: Amounts, used: Amounts, hard: Amounts) -> str:
    """The complaint when `delta` more than `used` is over `hard`, "" when it fits. `delta` holds limited names only."""
    over = [n for n in delta if n in hard and used.get(n, NONE) + delta[n] > hard[n]]
    if not over:
        return ""
    shown = (printed({n: amounts.get(n, NONE) for n in over}) for amounts in (delta, used, hard))
    return "exceeded quota: {}, requested: {}, used: {}, limited: {}".format(name, *shown)


def difference(new: Amounts, old: Amounts) -> Amounts:
    """What an update uses more than before; never negative."""
    return {name: value if name not in old else value - old[name] for name, value in new.items()
            if name not in old or value > old[name]}


def total(quota: Object, hard: Iterable[str], objects: Mapping[str, Iterable[Object]], now: float) -> Amounts:
    """The use of all objects (by resource name) under the quota, for the names in `hard`."""
    names = list(hard)
    sums: Amounts = dict.fromkeys(names, NONE)
    for resource, held in objects.items():
        for obj in held:
            if in_scope(quota, resource, obj):
                used = of(resource, obj, now)
                sums = added(sums, {name: used[name] for name in names if name in used})
    return sums
