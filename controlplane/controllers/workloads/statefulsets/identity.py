"""What makes a StatefulSet's pod the one it is: its name, its place in the network, its claims.

Pure. Owns the pod of an ordinal, its PersistentVolumeClaims, and who owns these by the retention policy. Promises that
identity and storage of an ordinal never change while pods come and go. Called by `controller`.

Upstream: pkg/controller/statefulset (stateful_set_utils.go, stateful_pod_control.go).
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.workloads import history, templates
from controlplane.controllers.workloads.statefulsets import ordinals
from controlplane.machinery import objects

POD_NAME = "statefulset.kubernetes.io/pod-name"
POD_INDEX = "apps.kubernetes.io/pod-index"

Obj = dict[str, Any]


def pod_name(owner: Obj, number: int) -> str:
    return f"{objects.name(owner)}-{number}"


def claim_templates(owner: Obj) -> list[Obj]:
    return objects.get(owner, "spec.volumeClaimTemplates", [])


def claim_name(owner: Obj, template: Obj, number: int) -> str:
    return f"{objects.name(template)}-{pod_name(owner, number)}"


def child(owner: Obj, number: int, revision: Obj) -> Obj:
    """The pod of the ordinal from the template that `revision` holds."""
    held = {**owner, "spec": {**owner["spec"], "template": history.template(revision)}}
    pod = templates.pod_of(held)
    pod["metadata"]["name"] = pod_name(owner, number)
    pod["metadata"].setdefault("labels", {})[history.HASH_LABEL] = objects.name(revision)
    pod["spec"]["hostname"] = pod_name(owner, number)
    identify(owner, pod)
    return pod


def identify(owner: Obj, pod: Obj) -> None:
    """Give the pod, in place, what the owner and its ordinal make of it."""
    number = ordinals.ordinal(owner, pod)
    labels = pod["metadata"].setdefault("labels", {})
    labels[POD_NAME], labels[POD_INDEX] = objects.name(pod), str(number)
    spec = pod["spec"]
    if service := objects.get(owner, "spec.serviceName"):
        spec["subdomain"] = service
    claimed = {objects.name(one): {"name": objects.name(one), "persistentVolumeClaim": {
        "claimName": claim_name(owner, one, number)}} for one in claim_templates(owner)}
    if claimed:
        spec["volumes"] = [*claimed.values(), *(one for one in spec.get("volumes") or ()
                                                if one["name"] not in claimed)]


def label_patch(pod: Obj) -> Obj | None:
    """The patch that gives the pod back the labels of its identity; None when it has them."""
    number = objects.name(pod).rpartition("-")[2]
    wanted = {POD_NAME: objects.name(pod), POD_INDEX: number}
    if wanted.items() <= objects.labels(pod).items():
        return None
    return {"metadata": {"uid": objects.uid(pod), "labels": wanted}}


# --- claims ------------------------------------------------------------------------------------------------------

def claims(owner: Obj, number: int) -> list[Obj]:
    """The claims of the ordinal, as they are made."""
    made = []
    for template in claim_templates(owner):
        meta = {**(template.get("metadata") or {}), "name": claim_name(owner, template, number),
                "namespace": objects.namespace(owner)}
        meta["labels"] = {**(meta.get("labels") or {}), **(objects.get(owner, "spec.selector.matchLabels") or {})}
        made.append({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta,
                     "spec": objects.deep_copy(template.get("spec") or {})})
    return made


def owners_patch(owner: Obj, number: int, pod: Obj | None, claim: Obj) -> Obj | None:
    """The merge patch that makes the claim's owners what the retention policy says; None when they are."""
    policy = objects.get(owner, "spec.persistentVolumeClaimRetentionPolicy") or {}
    scaled_away = policy.get("whenScaled") == "Delete" and not ordinals.wanted(owner, number)
    present = claim["metadata"].get("ownerReferences") or []
    others = [ref for ref in present if not _ours(owner, number, ref)]
    wanted = []
    if scaled_away:
        wanted = [objects.owner_reference(pod)] if pod is not None else [ref for ref in present if ref not in others]
    elif policy.get("whenDeleted") == "Delete":
        wanted = [objects.owner_reference(owner)]
    if any(ref.get("controller") for ref in others):  # another's: hands off
        return None
    after = others + wanted
    if [ref.get("uid") for ref in present] == [ref.get("uid") for ref in after]:
        return None
    return {"metadata": {"uid": objects.uid(claim), "resourceVersion": objects.revision(claim),
                         "ownerReferences": after or None}}


def _ours(owner: Obj, number: int, ref: Obj) -> bool:
    return (ref.get("kind"), ref.get("name")) in (("StatefulSet", objects.name(owner)),
                                                  ("Pod", pod_name(owner, number)))


def stale(owner: Obj, number: int, claim: Obj) -> bool:
    """Whether the claim goes with a former pod of the ordinal: a new pod must wait for its end."""
    return any((ref.get("kind"), ref.get("name")) == ("Pod", pod_name(owner, number))
               for ref in claim["metadata"].get("ownerReferences") or ()) or objects.deleting(claim)
