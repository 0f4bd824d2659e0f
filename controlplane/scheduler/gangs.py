"""Pods that are scheduled together or not at all. Pure.

Owns the two labels that make pods a group: its name, and how many of them must find a node at the same moment. Without
the second every pod of the group that exists must. Called by `loop`.

Upstream: the labels of the coscheduling plugin of kubernetes-sigs/scheduler-plugins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.machinery import objects

NAME = "pod-group.scheduling.sigs.k8s.io/name"
LEAST = "pod-group.scheduling.sigs.k8s.io/min-available"


@dataclass(frozen=True, slots=True)
class Gang:
    namespace: str
    name: str
    least: int


def of(pod: dict[str, Any]) -> Gang | None:
    labels = objects.labels(pod)
    name = labels.get(NAME)
    if not name:
        return None
    text = labels.get(LEAST, "")
    return Gang(objects.namespace(pod), name, int(text) if text.isdigit() else 1)


def incomplete(gang: Gang, running: int, waiting: Sequence[Any]) -> str:
    """Why it is too early to try; "" when enough of the group exist."""
    if running + len(waiting) >= gang.least:
        return ""
    return f"pod group {gang.name} has {running + len(waiting)} of the {gang.least} pods it starts with"
