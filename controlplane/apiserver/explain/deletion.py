"""Why a deleted object is still there: finalizers and who owns them, and what a namespace still holds.

Owns the knowledge of the standard finalizers. Pure. Registered for every kind; silent about what is not being deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from controlplane.apiserver.explain import Object, World, called, explains, target
from controlplane.machinery.clock import parse_rfc3339
from controlplane.machinery.errors import Finding
from controlplane.machinery.objects import condition, holds

OWNERS = {"foregroundDeletion": "the garbage collector, once its dependents are gone",
          "orphan": "the garbage collector, once its dependents are released",
          "kubernetes.io/pvc-protection": "the claim protection controller, once no pod uses the claim",
          "kubernetes.io/pv-protection": "the volume protection controller, once no claim is bound to the volume",
          "batch.kubernetes.io/job-tracking": "the job controller, once it has counted the pod",
          "service.kubernetes.io/load-balancer-cleanup": "the cloud's service controller, once the balancer is gone",
          "customresourcecleanup.apiextensions.k8s.io": "the API server, once all objects of the kind are gone"}


@explains("*")
def deletion(obj: Object, world: World) -> Iterator[Finding]:
    metadata = obj["metadata"]
    asked = metadata.get("deletionTimestamp")
    if not asked:
        return
    for finalizer in metadata.get("finalizers") or ():
        yield Finding(f"{called(obj)} is being deleted and waits for its finalizer {finalizer}",
                      f"that is removed by {owner(obj, finalizer)}{_remains(obj, finalizer, world)}",
                      f"if that will never come: {release(obj, finalizer)}")
    if obj["kind"] == "Namespace":
        yield from namespace(obj, world)
    if obj["kind"] == "Pod" and not metadata.get("finalizers"):
        yield from pod(obj, asked, world)


def owner(obj: Object, finalizer: str) -> str:
    """Who is to remove a finalizer, as far as it can be told."""
    if finalizer in OWNERS:
        return OWNERS[finalizer]
    for entry in obj["metadata"].get("managedFields") or ():
        fields = ((entry.get("fieldsV1") or {}).get("f:metadata") or {}).get("f:finalizers") or {}
        if f'v:"{finalizer}"' in fields:
            return f"{entry.get('manager')}, which set it"
    return f"the controller behind {finalizer.partition('/')[0]}"


def _remains(obj: Object, finalizer: str, world: World) -> str:
    metadata = obj["metadata"]
    if finalizer == "kubernetes.io/pvc-protection":
        users = [p["metadata"]["name"] for p in world.list("pods", metadata["namespace"])
                 for v in (p.get("spec") or {}).get("volumes") or ()
                 if (v.get("persistentVolumeClaim") or {}).get("claimName") == metadata["name"]]
        return f"; used by {', '.join(users)}" if users else ""
    if finalizer == "foregroundDeletion" and metadata.get("namespace"):
        left = [called({"kind": kind, **o}) for name, kind in (("pods", "Pod"), ("replicasets.apps", "ReplicaSet"))
                for o in world.list(name, metadata["namespace"])
                if any(r.get("uid") == metadata.get("uid") and r.get("blockOwnerDeletion")
                       for r in o["metadata"].get("ownerReferences") or ())]
        return f"; left: {', '.join(left[:5])}" if left else ""
    return ""


def release(obj: Object, finalizer: str) -> str:
    """The command that takes one finalizer away."""
    kept = [f for f in obj["metadata"]["finalizers"] if f != finalizer]
    patch = json.dumps({"metadata": {"finalizers": kept or None}}, separators=(",", ":"))
    return f"kubectl patch {target(obj)} --type=merge -p '{patch}'"


def namespace(obj: Object, world: World) -> Iterator[Finding]:
    name = obj["metadata"]["name"]
    left = {k: n for k, n in world.counts(name).items() if n}
    if left:
        listed = ", ".join(f"{count} {resource}" for resource, count in sorted(left.items()))
        held = next((k for k in left if any(o["metadata"].get("finalizers") for o in world.list(k, name))), "")
        yield Finding(f"{called(obj)} is being deleted and still holds {listed}",
                      f"some of its {held} wait for their finalizers" if held else "they are being deleted",
                      f"kubectl get {held or next(iter(left))} -n {name} -o yaml" if held else "")
    for kind in ("NamespaceDeletionDiscoveryFailure", "NamespaceDeletionContentFailure",
                 "NamespaceDeletionGroupVersionParsingFailure"):
        if holds(obj, kind):
            yield Finding(f"{called(obj)} cannot be emptied", (condition(obj, kind) or {}).get("message", ""), "")


def pod(obj: Object, asked: str, world: World) -> Iterator[Finding]:
    """A pod past its grace: its node does not answer."""
    over = world.now - parse_rfc3339(asked)
    if over < 0:
        yield Finding(f"{called(obj)} is ending", f"its containers have {-over:.0f} more seconds", "")
        return
    host = (obj.get("spec") or {}).get("nodeName", "")
    node = world.get("nodes", "", host) if host else None
    if host and (node is None or (condition(node, "Ready") or {}).get("status") != "True"):
        yield Finding(f"{called(obj)} should have ended {over:.0f} seconds ago", f"its node {host} does not answer",
                      f"kubectl delete {target(obj)} --force, when the node is surely off")
