"""What every Pod is completed with: a priority, tolerations of a failing node.

Owns those two rules. They read the cache and change only the Pod in hand. Called by the admission chain.

Upstream: plugin/pkg/admission/{priority,defaulttolerationseconds}.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin

TOLERATION_SECONDS = 300  # how long a Pod stays on a node that fails, unless it says otherwise; upstream's default
SYSTEM_PRIORITIES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _pod(attributes: Attributes, *operations: str) -> dict[str, Any] | None:
    """The Pod in hand, None when the request is about something else."""
    return attributes.obj if attributes.obj is not None and attributes.concerns("pods", *operations) else None


class Priority(Plugin):
    """The number behind a priority class. Only the two built-in classes exist until PriorityClasses are served."""

    async def mutate(self, attributes: Attributes) -> None:
        pod = _pod(attributes, CREATE)
        if pod is None:
            return
        spec: dict[str, Any] = pod.setdefault("spec", {})
        name, policy = spec.get("priorityClassName") or "", "PreemptLowerPriority"
        value = SYSTEM_PRIORITIES.get(name, 0)
        if name and name not in SYSTEM_PRIORITIES:
            raise attributes.forbidden(f"no PriorityClass with name {name} was found")
        if spec.get("priority") not in (None, value):
            raise attributes.forbidden(f"the integer value of priority ({spec['priority']}) must not be provided in "
                                       f"pod spec; priority admission controller computed {value} from the given "
                                       "PriorityClass name")
        spec["priority"] = value
        spec.setdefault("preemptionPolicy", policy)


class DefaultTolerations(Plugin):
    """A Pod survives a failing node for five minutes unless it says otherwise."""

    async def mutate(self, attributes: Attributes) -> None:
        pod = _pod(attributes, CREATE, UPDATE)
        if pod is None:
            return
        spec: dict[str, Any] = pod.setdefault("spec", {})
        tolerations = spec.get("tolerations") or []
        missing = [key for key in _TAINTS if not any(_tolerates(t, key) for t in tolerations)]
        if missing:
            spec["tolerations"] = [*tolerations, *({"key": key, "operator": "Exists", "effect": "NoExecute",
                                                    "tolerationSeconds": TOLERATION_SECONDS} for key in missing)]


def _tolerates(toleration: dict[str, Any], key: str) -> bool:
    return toleration.get("key") in (key, None, "") and toleration.get("effect") in ("NoExecute", None, "")
