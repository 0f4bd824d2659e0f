"""Why containers wait, in upstream's words: failed steps and back-offs as waiting reasons, each told once as an event.

Owns the memory of what was told. Promises that a failed pull shows its error before it shows its back-off. Decides
nothing about when something is tried again. Called by `worker`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.kubelet import plan
from agent.kubelet.context import Context
from agent.kubelet.model import ObservedPod
from agent.kubelet.restarts import follows, init_policy, policy

PULL_SHOWN = 3.0  # seconds ErrImagePull is shown before it becomes ImagePullBackOff
PULL_REASONS = ("ErrImagePull", "ErrImageNeverPull", "InvalidImageName", "ImageInspectError")
Failure = tuple[str, str, float]  # waiting reason, message, since


class Waiting:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._told: dict[str, str] = {}  # container name -> mark of the back-off told last

    def reasons(self, pod: dict[str, Any], seen: ObservedPod, failed: Mapping[str, Failure],
                not_before: Mapping[str, float], planned: Mapping[str, tuple[str, str]],
                now: float) -> tuple[dict[str, tuple[str, str]], float]:
        """(reason, message) by container name, and when one of them turns into another (0.0 = never)."""
        waiting: dict[str, tuple[str, str]] = {}
        turn = 0.0
        meta = pod["metadata"]
        for name, (reason, message, since) in failed.items():
            if reason == "ErrImagePull" and not_before.get(name, 0.0) > now:
                spec = plan.named(pod, name) or {}
                if now >= since + PULL_SHOWN:
                    text = f'Back-off pulling image "{spec.get("image", "")}"'
                    reason, message = "ImagePullBackOff", f"{text}: ErrImagePull: {message}"
                    self._once(pod, name, text, f"{text}@{since}")
                else:
                    turn = min(filter(None, (turn, since + PULL_SHOWN)))
            if reason and not (reason == "RunContainerError" and _stays(pod, seen, name)):
                waiting[name] = (reason, message)
        for name, entry in planned.items():
            waiting[name] = entry
            newest = seen.container(name)
            self._once(pod, name, f"Back-off restarting failed container {name} in pod {meta['name']}_"
                                  f"{meta.get('namespace', '')}({meta['uid']})", f"crash@{newest.id if newest else ''}")
        return waiting, turn

    def _once(self, pod: dict[str, Any], name: str, text: str, mark: str) -> None:
        if self._told.get(name) != mark:
            self._told[name] = mark
            self._context.tell(pod, "Warning", "BackOff", text, name)


def _stays(pod: dict[str, Any], seen: ObservedPod, name: str) -> bool:
    """Whether the container has ended for good: its end is told then, and nothing is waited for."""
    newest, spec = seen.container(name), plan.named(pod, name)
    init = any(c["name"] == name for c in pod["spec"].get("initContainers") or ())
    return newest is not None and spec is not None and newest.state == "exited" and not follows(
        init_policy(pod) if init else policy(pod), newest, spec)
