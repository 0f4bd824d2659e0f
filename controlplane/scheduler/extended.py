"""Extended resources that drivers of ResourceClaims provide: who asks for `example.com/gpu: 1` gets a claim. Pure.

Owns which DeviceClass a resource means, and the one claim that stands for all such resources of a pod on a node: what
it requests, and which container gets the devices of which request. Init containers end before others begin, so they
use devices of those and of each other. Called by `claims`; pods without such resources cost nothing.

Upstream: pkg/scheduler/framework/plugins/dynamicresources/extendeddynamicresources.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from controlplane.machinery import objects, quantity

PREFIX = "deviceclass.resource.kubernetes.io/"  # and a class's name: the resource it always provides
ANNOTATION = "resource.kubernetes.io/extended-resource-claim"
Obj = dict[str, Any]


def may(pod: Obj) -> bool:
    """Whether it asks for a resource that a class could provide."""
    return bool(_names(pod))


def classes(pod: Obj, stored: Iterable[Obj]) -> dict[str, Obj]:
    """The class of each resource the pod asks for that one provides: the newest, of the lesser name."""
    wanted = _names(pod)
    if not wanted:
        return {}
    by_name = sorted(stored, key=objects.name, reverse=True)
    return {name: one for one in sorted(by_name, key=lambda c: c["metadata"].get("creationTimestamp") or "")
            for name in (PREFIX + objects.name(one), (one.get("spec") or {}).get("extendedResourceName"))
            if name in wanted}


def temporary(pod_uid: str) -> str:
    """What the claim of a pod is called until it is written."""
    return f"extended-resources-of-{pod_uid}"


def written(pod: Obj, stored: Iterable[Obj]) -> list[Obj]:
    """The pod's claims of an attempt before, which was not carried through."""
    return [one for one in stored if ours(one) and (objects.controller_of(one) or {}).get("uid") == objects.uid(pod)]


def ours(claim: Obj) -> bool:
    return objects.annotations(claim).get(ANNOTATION) == "true"


def claim(pod: Obj, requests: list[Obj]) -> Obj:
    """The claim as it will be created, under the uid it has in memory."""
    return {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"namespace": objects.namespace(pod), "uid": temporary(objects.uid(pod)),
                         "annotations": {ANNOTATION: "true"}, "ownerReferences": [
                             objects.owner_reference({"apiVersion": "v1", "kind": "Pod", **pod})]},
            "spec": {"devices": {"requests": requests}}}


def unwritten(made: Obj) -> Obj:
    """The claim without what it is called in memory."""
    return {**made, "metadata": {key: value for key, value in made["metadata"].items() if key != "uid"}}


def requested(pod: Obj, provided: Mapping[str, Obj]) -> tuple[list[Obj], list[Obj]]:
    """The requests of the claim, and for the pod's status which container and resource each is for. `provided`: the
    resources that are to come of it, with their classes."""
    requests: list[Obj] = []
    mappings: list[Obj] = []
    for resource in sorted(provided):
        made, told = _of_resource(pod, resource, objects.name(provided[resource]))
        requests += made
        mappings += told
    return sorted(requests, key=lambda one: one["name"]), mappings


def _of_resource(pod: Obj, resource: str, device_class: str) -> tuple[list[Obj], list[Obj]]:
    containers = _containers(pod)
    lasting = [(at, one) for at, one in enumerate(containers) if not _brief(pod, at)]
    kept = {at: _request(at, one, resource, device_class, _count(one, resource)) for at, one in lasting
            if _count(one, resource)}
    told = [_mapping(containers[at], resource, request["name"]) for at, request in kept.items()]
    largest, waiting = None, []
    for at, one in enumerate(containers):
        left = _count(one, resource) if _brief(pod, at) else 0
        for later, request in kept.items():
            if left > 0 and later >= at:
                told.append(_mapping(one, resource, request["name"]))
                left -= request["exactly"]["count"]
        if left > 0:
            waiting.append(one)
            if largest is None or left > largest["exactly"]["count"]:
                largest = _request(at, one, resource, device_class, left)
    if largest is not None:
        told += [_mapping(one, resource, largest["name"]) for one in waiting]
    return [*kept.values(), *([largest] if largest is not None else [])], told


def _containers(pod: Obj) -> list[Obj]:
    spec = pod.get("spec") or {}
    return [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]


def _names(pod: Obj) -> set[str]:
    return {name for one in _containers(pod) for name in _asked(one) if "/" in name and _count(one, name)}


def _brief(pod: Obj, at: int) -> bool:
    """Whether a container, by its place among all, ends before those after it begin."""
    inits = (pod.get("spec") or {}).get("initContainers") or []
    return at < len(inits) and inits[at].get("restartPolicy") != "Always"


def _asked(container: Obj) -> Obj:
    return (container.get("resources") or {}).get("requests") or {}


def _count(container: Obj, resource: str) -> int:
    return quantity.parse(str(_asked(container).get(resource, 0))).value()


def _request(at: int, container: Obj, resource: str, device_class: str, count: int) -> Obj:
    name = f"container-{at}-request-{sorted(_asked(container)).index(resource)}"
    return {"name": name, "exactly": {"deviceClassName": device_class, "allocationMode": "ExactCount", "count": count}}


def _mapping(container: Obj, resource: str, request: str) -> Obj:
    return {"containerName": container["name"], "resourceName": resource, "requestName": request}
