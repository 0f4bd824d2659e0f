"""Why a workload does not get on: its own conditions first, then the pods it made or could not make.

Owns the way from a Deployment, ReplicaSet, StatefulSet, DaemonSet or Job to what holds it up. Pure. Also says why a
claim waits and why a node is not ready.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from controlplane.apiserver.explain import MAX_FOLLOWED, Object, World, called, explains, target, warnings_about
from controlplane.apiserver.explain.pods import pod
from controlplane.machinery.errors import Finding
from controlplane.machinery.objects import condition, controller_of, holds


def owned(obj: Object, candidates: Sequence[Object]) -> list[Object]:
    """Those whose controller is `obj`."""
    uid = obj["metadata"].get("uid")
    return [c for c in candidates if (controller_of(c) or {}).get("uid") == uid]


@explains("Deployment")
def deployment(obj: Object, world: World) -> Iterator[Finding]:
    spec, namespace = obj.get("spec") or {}, obj["metadata"]["namespace"]
    if spec.get("paused"):
        yield Finding(f"{called(obj)} is paused", "changes of its template are not rolled out",
                      f"kubectl rollout resume {target(obj)}")
    progress = condition(obj, "Progressing") or {}
    if progress.get("status") == "False":
        yield Finding(f"{called(obj)} does not progress", progress.get("message", ""),
                      f"kubectl rollout undo {target(obj)} returns to what ran before")
    sets = sorted(owned(obj, world.list("replicasets.apps", namespace)),
                  key=lambda s: s["metadata"].get("creationTimestamp", ""), reverse=True)
    for one in sets:
        if (one.get("spec") or {}).get("replicas"):
            yield from workload({"kind": "ReplicaSet", **one}, world)


@explains("ReplicaSet", "ReplicationController", "StatefulSet", "DaemonSet", "Job")
def workload(obj: Object, world: World) -> Iterator[Finding]:
    namespace = obj["metadata"]["namespace"]
    failure = condition(obj, "ReplicaFailure") or {}
    if failure.get("status") == "True":
        yield Finding(f"{called(obj)} cannot make its pods", failure.get("message", ""), "")
    else:
        for event in warnings_about(obj, world, "FailedCreate")[:1]:
            yield Finding(f"{called(obj)} cannot make its pods", event.get("message", ""), "")
    failed = condition(obj, "Failed") or {}
    if obj["kind"] == "Job" and failed.get("status") == "True":
        yield Finding(f"{called(obj)} has failed", f"{failed.get('reason')}: {failed.get('message')}",
                      f"kubectl logs job/{obj['metadata']['name']} -n {namespace}")
    waiting = [p for p in owned(obj, world.list("pods", namespace)) if not _fine(p)]
    for one in waiting[:MAX_FOLLOWED]:
        yield from pod({"kind": "Pod", **one}, world)
    if len(waiting) > MAX_FOLLOWED:
        yield Finding(f"{len(waiting) - MAX_FOLLOWED} more pods of {called(obj)} are not ready", "", "")


def _fine(obj: Object) -> bool:
    return holds(obj, "Ready") or (obj.get("status") or {}).get("phase") == "Succeeded"


@explains("PersistentVolumeClaim")
def claim(obj: Object, world: World) -> Iterator[Finding]:
    if (obj.get("status") or {}).get("phase", "Pending") != "Pending":
        return
    name = (obj.get("spec") or {}).get("storageClassName")
    kind = world.get("storageclasses.storage.k8s.io", "", name) if name else None
    if name and kind is None:
        yield Finding(f"{called(obj)} is not bound", f'there is no storage class "{name}"',
                      "kubectl get storageclass, then correct storageClassName in a new claim")
    elif kind is not None and kind.get("volumeBindingMode") == "WaitForFirstConsumer":
        yield Finding(f"{called(obj)} is not bound yet", "its class binds when the first pod uses it",
                      "create a pod that mounts it")
    else:
        events = warnings_about(obj, world)
        yield Finding(f"{called(obj)} is not bound", events[0].get("message", "") if events else
                      "no free volume has its size, access modes and class", "kubectl get persistentvolume")


@explains("Node")
def node(obj: Object, world: World) -> Iterator[Finding]:
    ready = condition(obj, "Ready") or {}
    if ready.get("status") != "True":
        yield Finding(f"{called(obj)} is not ready", ready.get("message") or "its agent has not reported yet",
                      "pelamis status, on that node")
    for one in (obj.get("status") or {}).get("conditions") or ():
        if one.get("type", "").endswith("Pressure") and one.get("status") == "True":
            yield Finding(f"{called(obj)} is under {one['type']}", one.get("message", ""), "free some of it")
    if (obj.get("spec") or {}).get("unschedulable"):
        yield Finding(f"{called(obj)} is cordoned", "it gets no new pods",
                      f"kubectl uncordon {obj['metadata']['name']}")
