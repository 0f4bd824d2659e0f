"""What the chain knows of nodes: a new one starts out unready, and a kubelet writes only what belongs to its own.

TaintNewNodes keeps pods away until the node controller has looked; NodeRestriction asks the node authorizer, which has
the rule. Called by the admission chain.
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


class NodeRestriction(Plugin):
    """A kubelet may write only what belongs to its node; the node authorizer knows the rule."""

    async def mutate(self, attributes: Attributes) -> None:
        ask = getattr(self.context.authorizer, "admit_node", None)
        if ask is not None and attributes.request is not None:
            ask(attributes.request, attributes.obj, attributes.old)
