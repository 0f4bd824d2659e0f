"""Resizing a running pod: cpu and memory of its containers, and of itself as a whole, and nothing else.

Owns what /resize may change (`prepare_resize`) and what it may not (`resize_causes`). Pure; called by the apiserver's
subresources. Making the change happen is the kubelet's.

Upstream: ValidatePodResize in k8s.io/kubernetes/pkg/apis/core/validation, podResizeStrategy in pkg/registry/core/pod.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import Cause, forbidden, invalid
from controlplane.machinery.podresources import qos_class
from controlplane.machinery.validate import pods

Object = dict[str, Any]
MIRROR = "kubernetes.io/config.mirror"
RESIZABLE = frozenset(("cpu", "memory"))
ONLY = "only cpu and memory resources are mutable"
_KINDS = ("containers", "initContainers")
_SIZE = ("resources", "resizePolicy")  # of a container


def prepare_resize(new: Object, old: Object) -> None:
    """Everything but resources is the stored pod's, metadata too; a change is a new generation. Containers that are
    others than before stay, for `resize_causes` to name."""
    wanted = new.get("spec") or {}
    before = old.get("spec") or {}
    spec = {k: v for k, v in before.items() if k != "resources"}
    if wanted.get("resources") is not None:
        spec["resources"] = wanted["resources"]
    for kind in _KINDS:
        asked, known = wanted.get(kind) or [], before.get(kind) or []
        if _names(asked) == _names(known):
            asked = [{**{k: v for k, v in has.items() if k not in _SIZE}, **{k: c[k] for k in _SIZE if k in c}}
                     for c, has in zip(asked, known)]
        if asked:
            spec[kind] = asked
        else:
            spec.pop(kind, None)
    for field in {*new, *old} - {"apiVersion", "kind"}:
        if field in old:
            new[field] = old[field]
        else:
            del new[field]
    new["metadata"] = dict(old["metadata"])
    new["spec"] = spec
    if spec != before and new["metadata"].get("generation"):
        new["metadata"]["generation"] += 1


def _names(containers: list[Object]) -> list[Any]:
    return [c.get("name") for c in containers]


def resize_causes(new: Object, old: Object) -> list[Cause]:
    """What of a prepared resize is not allowed."""
    spec, before = new["spec"], old.get("spec") or {}
    if MIRROR in (old["metadata"].get("annotations") or {}):
        return [forbidden("", "static pods cannot be resized")]
    if (before.get("os") or {}).get("name") == "windows":
        return [forbidden("", "windows pods cannot be resized")]
    found = pods.pod(new)
    quality = (old.get("status") or {}).get("qosClass") or qos_class(before)
    if qos_class(spec) != quality:
        found.append(invalid("spec", quality, "Pod QOS Class may not change as a result of resizing"))
    if moved := [cause for kind in _KINDS for cause in _others(spec.get(kind) or [], before.get(kind) or [], kind)]:
        return found + moved
    found += _size(spec, before, "spec", ONLY)
    for kind in _KINDS:
        for index, (after, was) in enumerate(zip(spec.get(kind) or (), before.get(kind) or ())):
            if after != was:
                found += _container(after, was, kind, f"spec.{kind}[{index}]")
    return found


def _others(new: list[Object], old: list[Object], kind: str) -> list[Cause]:
    """Containers that came, went or changed places."""
    if len(new) != len(old):
        return [forbidden(f"spec.{kind}", f"{kind} may not be added or removed on resize")]
    return [forbidden(f"spec.{kind}[{index}].name", f"{kind} may not be renamed or reordered on resize")
            for index, (after, before) in enumerate(zip(_names(new), _names(old))) if after != before]


def _container(after: Object, before: Object, kind: str, path: str) -> list[Cause]:
    if kind == "initContainers" and before.get("restartPolicy") != "Always":
        return [forbidden("spec", "resources for non-sidecar init containers are immutable")]
    only = ONLY if kind == "containers" else "only cpu and memory resources for sidecar containers are mutable"
    found = _size(after, before, path, only)
    return found + ([forbidden("spec", only)] if after.get("resizePolicy") != before.get("resizePolicy") else [])


def _size(after: Object, before: Object, path: str, only: str) -> list[Cause]:
    """What of somebody's new resources is not allowed: nothing stated goes away, and only cpu and memory change."""
    now, was = after.get("resources") or {}, before.get("resources") or {}
    found: list[Cause] = []
    others = now.get("claims") != was.get("claims")
    for field in ("requests", "limits"):
        new, old = now.get(field) or {}, was.get(field) or {}
        if old.keys() - new.keys():
            found.append(forbidden(f"{path}.resources.{field}", f"resource {field} cannot be removed"))
        others = others or any(new.get(name) != old.get(name) for name in {*new, *old} - RESIZABLE)
    return [*found, forbidden("spec", only)] if others else found
