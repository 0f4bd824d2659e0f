"""TaintNodesByCondition: a node starts out unready, so nothing is scheduled to it before the node controller looked.

Owns one taint at creation. Called by the admission chain.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, Attributes, Plugin

NOT_READY = "node.kubernetes.io/not-ready"


class TaintNewNodes(Plugin):
    async def mutate(self, attributes: Attributes) -> None:
        if attributes.obj is None or not attributes.concerns("nodes", CREATE):
            return
        spec: dict[str, Any] = attributes.obj.get("spec") or {}
        taints = spec.get("taints") or []
        if not any(t.get("key") == NOT_READY and t.get("effect") == "NoSchedule" for t in taints):
            spec["taints"] = [*taints, {"key": NOT_READY, "effect": "NoSchedule"}]
        attributes.obj["spec"] = spec
