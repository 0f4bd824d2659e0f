"""What everybody reads of a Pod: has it ended, does it count, since when is it ready, which claims does it mount.

Pure. The readers never raise on a missing part. Called by controllers and whoever else asks about Pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.machinery import objects
from controlplane.machinery.clock import parse_rfc3339

ENDED = ("Succeeded", "Failed")  # phases

Pod = dict[str, Any]


def finished(pod: Mapping[str, Any]) -> bool:
    """Whether it has ended, well or not."""
    return (pod.get("status") or {}).get("phase") in ENDED


def active(pod: Pod) -> bool:
    """Whether it counts: neither finished nor being deleted."""
    return not finished(pod) and not objects.deleting(pod)


def terminating(pod: Pod) -> bool:
    """Whether it is being deleted and has not ended yet."""
    return objects.deleting(pod) and not finished(pod)


def ready_since(pod: Pod) -> float | None:
    """When it became ready (wall seconds), None while it is not."""
    if not objects.holds(pod, "Ready"):
        return None
    since = (objects.condition(pod, "Ready") or {}).get("lastTransitionTime")
    return parse_rfc3339(since) if since else 0.0


def available(pod: Pod, min_ready: int, now: float) -> bool:
    """Whether it has been ready for `min_ready` seconds."""
    since = ready_since(pod)
    return since is not None and (min_ready == 0 or since + min_ready <= now)


def next_available(pods: Iterable[Pod], min_ready: int, now: float) -> float | None:
    """Seconds until the next ready one counts as available, None when none will by itself."""
    waits = [since + min_ready - now for pod in pods if (since := ready_since(pod)) is not None]
    return min((wait for wait in waits if wait > 0), default=None) if min_ready else None


def claim_names(pod: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """The claims its volumes name: (name, whether the claim is made for this Pod alone)."""
    found = []
    for volume in (pod.get("spec") or {}).get("volumes") or ():
        if claim := volume.get("persistentVolumeClaim"):
            found.append((claim.get("claimName", ""), False))
        elif volume.get("ephemeral") is not None:
            found.append((f"{pod['metadata']['name']}-{volume['name']}", True))
    return found
