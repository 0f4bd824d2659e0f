"""What the exit of a container is followed by: nothing, a new start of its own, or a new start of all.

Pure. Owns the reading of restart policies and of the rules that come before them. Promises that the record of the exit
that asks for all outlives those of all others, so that a restarted agent goes on where the last one was. Called by
`plan` and `reporting`.

Upstream: pkg/kubelet/container/helpers.go; KEP 5307 and 5532.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from agent.kubelet.model import ObservedContainer, ObservedPod

ONE, ALL = "Restart", "RestartAllContainers"


def policy(pod: dict[str, Any]) -> str:
    return str(pod["spec"].get("restartPolicy") or "Always")


def init_policy(pod: dict[str, Any]) -> str:
    """Init containers run until they succeed, or once."""
    return "OnFailure" if policy(pod) == "Always" else policy(pod)


def is_sidecar(container: dict[str, Any]) -> bool:
    """A restartable init container; only meaningful for init containers."""
    return container.get("restartPolicy") == "Always"


def action(spec: dict[str, Any], exit_code: int) -> str:
    """What the container's own rules say of an exit; "" where none is about it."""
    for rule in spec.get("restartPolicyRules") or ():
        codes = rule.get("exitCodes") or {}
        if (exit_code in (codes.get("values") or ())) == (codes.get("operator") == "In"):
            return str(rule.get("action"))
    return ""


def restarts(pod_policy: str, exit_code: int, spec: dict[str, Any] | None = None) -> bool:
    """Whether an exit is followed by a new start: by the container's own rules and policy, else by the pod's."""
    if said := action(spec or {}, exit_code):
        return said in (ONE, ALL)
    own = (spec or {}).get("restartPolicy") or pod_policy
    return own == "Always" or (own == "OnFailure" and exit_code != 0)


def container_hash(container: dict[str, Any]) -> str:
    """Identity of a container's definition: as upstream, of what may change on a live pod and needs a new process."""
    text = json.dumps([container.get("name"), container.get("image")])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def outdated(found: ObservedContainer, spec: dict[str, Any]) -> bool:
    """Whether the container was made of a definition that has been changed since."""
    return bool(found.hash) and found.hash != container_hash(spec)


def follows(pod_policy: str, ended: ObservedContainer, spec: dict[str, Any]) -> bool:
    """Whether a container's end is followed by a new start: always, where it is not what the pod says any more."""
    return outdated(ended, spec) or restarts(pod_policy, ended.exit_code, spec)


def lasting(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The init and main containers: all that a pod is made with."""
    yield from pod["spec"].get("initContainers") or ()
    yield from pod["spec"]["containers"]


def may_reset(pod: dict[str, Any]) -> bool:
    """Whether a container's exit can be followed by a new start of all."""
    return any(rule.get("action") == ALL for spec in lasting(pod) for rule in spec.get("restartPolicyRules") or ())


def asking(pod: dict[str, Any], seen: ObservedPod) -> list[ObservedContainer]:
    """The ends that ask for a new start of all, the latest first."""
    newest = [(spec, seen.container(spec["name"])) for spec in lasting(pod)]
    found = [c for spec, c in newest if c is not None and c.state == "exited" and action(spec, c.exit_code) == ALL]
    return sorted(found, key=lambda c: -c.finished_at)
