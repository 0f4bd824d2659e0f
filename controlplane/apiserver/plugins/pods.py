"""What every Pod is completed with: tolerations of a failing node.

Owns that rule, which changes only the Pod in hand. Called by the admission chain.

Upstream: plugin/pkg/admission/defaulttolerationseconds.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.admission import CREATE, UPDATE, Attributes, Plugin

TOLERATION_SECONDS = 300  # how long a Pod stays on a node that fails, unless it says otherwise; upstream's default
_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def _pod(attributes: Attributes, *operations: str) -> dict[str, Any] | None:
    """The Pod in hand, None when the request is about something else."""
    return attributes.obj if attributes.obj is not None and attributes.concerns("pods", *operations) else None


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
