"""Evictions and the PodDisruptionBudgets they must leave intact.

Owns the decision whether a Pod may be evicted now, and the spending of one disruption, bound to the version of the
budget it was decided on: two evictions never spend the same one. Counting healthy Pods is the disruption controller's.
`judge` is pure. Called by the eviction subresource.

Upstream: k8s.io/kubernetes/pkg/registry/core/pod/storage/eviction.go.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.context import Context
from controlplane.machinery import objects, podfacts, selectors
from controlplane.machinery.errors import ApiError, Cause, Conflict, Forbidden, InternalError, TooManyRequests
from controlplane.store.cache import key_of, prefix_of
from controlplane.store.log import Stale

BUDGETS = "poddisruptionbudgets.policy"
RETRIES = 20  # of a spending that lost a race against another; upstream's number
MAX_UNCONFIRMED = 2000  # evictions the disruption controller has not yet seen; upstream's bound
BUSY_SECONDS = 10  # until the next try when a budget was not counted yet; upstream's number
REFUSED = "Cannot evict pod as it would violate the pod's disruption budget."
MANY = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support."
Object = dict[str, Any]


def exempt(pod: Object) -> bool:
    """Whether no budget speaks for the Pod: it does not run, or goes already. Pure."""
    return not podfacts.active(pod) or (pod.get("status") or {}).get("phase") == "Pending"


def covers(budget: Object, pod: Object) -> bool:
    """Whether a budget is about the Pod. Pure."""
    selector = (budget.get("spec") or {}).get("selector")
    return selector is not None and selectors.from_label_selector(selector).matches(
        pod["metadata"].get("labels") or {})


def spares(budget: Object, pod: Object) -> bool:
    """Whether the budget loses nothing by the Pod's end, for it is not ready. Pure."""
    if objects.holds(pod, "Ready"):
        return False
    spec, status = budget.get("spec") or {}, budget.get("status") or {}
    if spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
        return True
    desired = status.get("desiredHealthy") or 0
    return desired > 0 and (status.get("currentHealthy") or 0) >= desired


def _refused(message: str, seconds: int = 0) -> TooManyRequests:
    details: dict[str, Any] = {"causes": [Cause("DisruptionBudget", message, "").as_dict()]}
    del details["causes"][0]["field"]
    if seconds:
        details["retryAfterSeconds"] = seconds
    return TooManyRequests(REFUSED, details)


def judge(budget: Object, pod: Object, now: str) -> Object:
    """The budget with one disruption spent on the Pod. Raises TooManyRequests and Forbidden. Pure."""
    name, status = budget["metadata"]["name"], budget.get("status") or {}
    if (status.get("observedGeneration") or 0) < (budget["metadata"].get("generation") or 0):
        raise _refused(f"The disruption budget {name} is still being processed by the server.", BUSY_SECONDS)
    allowed = status.get("disruptionsAllowed") or 0
    why = ""
    if allowed < 0:
        why = "pdb disruptions allowed is negative"
    elif len(status.get("disruptedPods") or {}) > MAX_UNCONFIRMED:
        why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller"
    if why:
        raise Forbidden.of("poddisruptionbudgets", name, why, "policy")
    if allowed == 0:
        condition = objects.condition(budget, "DisruptionAllowed") or {}
        if condition.get("status") == "False" and condition.get("reason") == "SyncFailed":
            raise _refused(f"The disruption budget {name} does not allow evicting pods currently because it failed "
                           f"sync: {condition.get('message', '')}")
        raise _refused(f"The disruption budget {name} needs {status.get('desiredHealthy') or 0} healthy pods and has "
                       f"{status.get('currentHealthy') or 0} currently")
    made = objects.deep_copy(budget)
    left: Object = made["status"]
    left["disruptionsAllowed"] = allowed - 1
    left["disruptedPods"] = {**(left.get("disruptedPods") or {}), pod["metadata"]["name"]: now}
    if allowed == 1:
        conditions: list[Any] = left.setdefault("conditions", [])
        objects.set_condition(conditions, "DisruptionAllowed", "False", "InsufficientPods", "", now)
    return made


async def spend(context: Context, pod: Object, dry: bool) -> None:
    """Spend one disruption of the budget that covers the Pod, if one does. Raises ApiError when it may not go."""
    if exempt(pod):
        return
    namespace = pod["metadata"]["namespace"]
    for _ in range(RETRIES):
        found = [item for item in context.cache.list(prefix_of(BUDGETS, namespace)) if covers(item.obj, pod)]
        if not found:
            return
        if len(found) > 1:
            raise ApiError(MANY, code=500, reason=InternalError.reason)
        item = found[0]
        if spares(item.obj, pod):
            return
        spent = judge(item.obj, pod, context.clock.timestamp())
        if dry:
            return
        try:
            await context.cache.write(key_of(BUDGETS, namespace, item.obj["metadata"]["name"]), spent, item.revision)
        except Stale:
            continue
        return
    raise Conflict.of("poddisruptionbudgets", item.obj["metadata"]["name"], "policy")
