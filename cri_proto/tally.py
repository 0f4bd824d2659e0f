"""How often the runtime was called, how often that failed and how long it took, by kind of call.

Owns three numbers and a histogram per kind, by upstream's names of the kinds. Called by `client`; read by whoever tells
metrics.

Upstream: pkg/kubelet/kuberuntime/instrumented_services.go.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field

BOUNDS = tuple(0.005 * 2.5 ** n for n in range(14))  # seconds; upstream's
_WORD = re.compile(r"(?<!^)(?=[A-Z])")
_NAMED = {"UpdateContainerResources": "update_container"}


def operation(method: str) -> str:
    """Upstream's name of a call: `RunPodSandbox` is `run_podsandbox`."""
    return _NAMED.get(method) or _WORD.sub("_", method.replace("PodSandbox", "Podsandbox")).lower()


@dataclass(slots=True)
class Calls:
    """Of one kind."""

    count: int = 0
    errors: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, seconds: float, failed: bool) -> None:
        self.count += 1
        self.errors += failed
        self.seconds += seconds
        self.buckets[bisect_left(BOUNDS, seconds)] += 1


class Tally:
    def __init__(self) -> None:
        self.kinds: dict[str, Calls] = {}

    def of(self, method: str) -> Calls:
        return self.kinds.setdefault(operation(method), Calls())
