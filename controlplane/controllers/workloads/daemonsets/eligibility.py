"""Which nodes a DaemonSet's pod belongs on, and what its pod for one node looks like.

Pure. Owns node affinity and taints as the DaemonSet controller asks them (the scheduler asks them again),
the tolerations every daemon has, and the affinity that pins a pod to its node. Called by `daemons`.

Upstream: pkg/controller/daemon (NodeShouldRunDaemonPod, CreatePodTemplate) and daemon/util.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.nodes import health
from controlplane.controllers.workloads import templates
from controlplane.controllers.workloads.history import HASH_LABEL
from controlplane.machinery import objects, placement
from controlplane.machinery.placement import Named

GENERATION = "deprecated.daemonset.template.generation"
GENERATION_LABEL = "pod-template-generation"
_EXECUTE = (health.NOT_READY, health.UNREACHABLE)
_SCHEDULE = ("node.kubernetes.io/disk-pressure", "node.kubernetes.io/memory-pressure",
             "node.kubernetes.io/pid-pressure", health.UNSCHEDULABLE)
_NETWORK = "node.kubernetes.io/network-unavailable"

Obj = dict[str, Any]


def tolerations(spec: Obj) -> list[Obj]:
    """The template's tolerations and those every daemon pod has."""
    result = list(spec.get("tolerations") or ())
    keys = [(key, "NoExecute") for key in _EXECUTE]
    keys += [(key, "NoSchedule") for key in (*_SCHEDULE, *((_NETWORK,) if spec.get("hostNetwork") else ()))]
    for key, effect in keys:
        one = {"key": key, "operator": "Exists", "effect": effect}
        if one not in result:
            result.append(one)
    return result


def judge(owner: Obj, node: Obj) -> tuple[bool, bool]:
    """(whether a pod shall be made for the node, whether one that is there may stay)."""
    spec = objects.get(owner, "spec.template.spec") or {}
    if spec.get("nodeName") and spec["nodeName"] != objects.name(node):
        return False, False
    if not affine(spec, node):
        return False, False
    tolerated = tolerations(spec)
    taints = [taint for taint in (*objects.get(node, "spec.taints", []), *_implied(node))
              if not any(placement.tolerates(one, taint) for one in tolerated)]
    if any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in taints):
        return False, not any(taint["effect"] == "NoExecute" for taint in taints)
    return True, True


def _implied(node: Obj) -> list[Obj]:
    return [{"key": health.UNSCHEDULABLE, "effect": "NoSchedule"}] if objects.get(node, "spec.unschedulable") else []


def affine(spec: Obj, node: Obj) -> bool:
    """Whether the node satisfies the pod's node selector and required node affinity."""
    required = objects.get(spec, "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution")
    terms = None if required is None else required.get("nodeSelectorTerms") or ()
    return placement.selects(spec.get("nodeSelector") or {}, terms, Named(objects.name(node), objects.labels(node)))


def node_of(pod: Obj) -> str:
    """The node the pod runs on or is pinned to; "" when neither."""
    if name := objects.get(pod, "spec.nodeName"):
        return name
    path = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"
    for term in (objects.get(pod, path) or {}).get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if (field.get("key"), field.get("operator")) == ("metadata.name", "In") and len(field["values"]) == 1:
                return field["values"][0]
    return ""


def child(owner: Obj, node: str, revision: str) -> Obj:
    """The pod of the owner's template for the node, without a name; `revision` is its template's hash."""
    pod = templates.pod_of(owner)
    labels = pod["metadata"].setdefault("labels", {})
    labels[HASH_LABEL] = revision
    if generation := objects.annotations(owner).get(GENERATION):
        labels[GENERATION_LABEL] = generation
    spec = pod["spec"]
    spec["tolerations"] = tolerations(spec)
    affinity = spec["affinity"] = dict(spec.get("affinity") or {})
    pinned = {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}
    affinity["nodeAffinity"] = {**(affinity.get("nodeAffinity") or {}),
                                "requiredDuringSchedulingIgnoredDuringExecution": pinned}
    return pod
