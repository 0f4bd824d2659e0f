"""Which pods make room on this node for a critical one that was bound here and does not fit.

Pure. Owns upstream's order: the fewest Guaranteed pods, then the fewest Burstable ones, then the fewest of the rest; of
two that free as much, the smaller. Only resources are made free this way. Called by `kubelet`, which has them end
before the critical pod begins.

Upstream: pkg/kubelet/preemption.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from agent.kubelet import admit
from agent.kubelet.admit import amounts
from agent.kubelet.pressure.victims import MARK as BY_KUBELET
from controlplane.machinery.podresources import qos_class

REASON, MESSAGE = "Preempting", "Preempted in order to admit critical pod"
MARK = (*BY_KUBELET, "Pod was preempted by Kubelet to accommodate a critical pod.")
Object = dict[str, Any]


def victims(pod: Object, others: Iterable[Object], place: admit.Place) -> list[Object]:
    """Those of `others` that have to go so that `pod` fits; none when it is not critical or all were not enough."""
    others = list(others)
    short = {name: wanted + used - has for name, (wanted, used, has) in admit.shortages(pod, others, place).items()}
    if not short or not admit.critical(pod):
        return []
    mine = pod["spec"].get("priority") or 0
    weaker = [o for o in others if not admit.critical(o) or (o["spec"].get("priority") or 0) < mine]
    best, burstable, guaranteed = ([o for o in weaker if qos_class(o["spec"]) == kind]
                                   for kind in ("BestEffort", "Burstable", "Guaranteed"))
    if _left(short, weaker):
        return []
    guaranteed = _fewest(guaranteed, _left(short, [*best, *burstable]))
    burstable = _fewest(burstable, _left(short, [*best, *guaranteed]))
    return [*_fewest(best, _left(short, [*burstable, *guaranteed])), *burstable, *guaranteed]


def _left(short: Mapping[str, int], gone: list[Object]) -> dict[str, int]:
    """What is missing when these are gone."""
    freed = [amounts(pod) for pod in gone]
    left = {name: missing - sum(one.get(name, 0) for one in freed) for name, missing in short.items()}
    return {name: missing for name, missing in left.items() if missing > 0}


def _fewest(pods: list[Object], short: dict[str, int]) -> list[Object]:
    """Few of `pods`, which are enough together: again and again the one that frees most of what is missing."""
    rest, chosen = list(pods), list[Object]()

    def place(pod: Object) -> tuple[float, int, int]:
        frees = amounts(pod)
        far = sum(max(0.0, (missing - frees.get(name, 0)) / missing) ** 2 for name, missing in short.items())
        return far, frees.get("memory", 0), frees.get("cpu", 0)
    while short and rest:
        chosen.append(rest.pop(rest.index(min(rest, key=place))))
        short = _left(short, chosen[-1:])
    return chosen
