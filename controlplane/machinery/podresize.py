"""Resizing a running pod: its containers' cpu and memory, and nothing else.

Owns what /resize may change (`prepare_resize`) and what it may not (`resize_causes`). Pure; called by the apiserver's
subresources. Making the change happen is the kubelet's.

Upstream: ValidatePodResize in k8s.io/kubernetes/pkg/apis/core/validation, podResizeStrategy in pkg/registry/core/pod.
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.defaults.pods import qos_class
from controlplane.machinery.errors import Cause, forbidden, invalid
from controlplane.machinery.validate.containers import requirements

Object = dict[str, Any]
MIRROR = "kubernetes.io/config.mirror"
RESIZABLE = frozenset(("cpu", "memory"))
_KINDS = ("containers", "initContainers")


def prepare_resize(new: Object, old: Object) -> None:
    """Everything but the containers' resources is the stored pod's, metadata too; a change is a new generation."""
    wanted = new.get("spec") or {}
    before = old.get("spec") or {}
    spec = dict(before)
    for kind in _KINDS:
        asked = {c.get("name"): c.get("resources") or {} for c in wanted.get(kind) or ()}
        if kind in before:
            spec[kind] = [{**c, "resources": asked.get(c["name"], c.get("resources") or {})} for c in before[kind]]
    for field in {*new, *old} - {"apiVersion", "kind"}:
        if field in old:
            new[field] = old[field]
        else:
            del new[field]
    new["metadata"] = dict(old["metadata"])
    new["spec"] = spec
    if spec != before and new["metadata"].get("generation"):
        new["metadata"]["generation"] += 1


def resize_causes(new: Object, old: Object) -> list[Cause]:
    """What of a prepared resize is not allowed."""
    if MIRROR in (old["metadata"].get("annotations") or {}):
        return [forbidden("", "static pods do not support resize")]
    found: list[Cause] = []
    for kind in _KINDS:
        pairs = zip(new["spec"].get(kind) or (), (old.get("spec") or {}).get(kind) or ())
        for index, (after, before) in enumerate(pairs):
            if after != before:
                found += _container(after, before, kind, f"spec.{kind}[{index}]")
    quality = qos_class(new["spec"])
    if not found and quality != ((old.get("status") or {}).get("qosClass") or quality):
        found.append(invalid("spec", quality, "Pod QOS Class may not change as a result of resizing"))
    return found


def _container(after: Object, before: Object, kind: str, path: str) -> list[Cause]:
    if kind == "initContainers" and before.get("restartPolicy") != "Always":
        return [forbidden(f"{path}.resources", "cannot be changed for non-restartable init containers")]
    now, was = after.get("resources") or {}, before.get("resources") or {}
    found = requirements(now, f"{path}.resources")
    for field in ("limits", "requests"):
        new, old = now.get(field) or {}, was.get(field) or {}
        found += [forbidden(f"{path}.resources.{field}", f"resource {field} cannot be removed")
                  for name in old if name in RESIZABLE and name not in new]
        if any(new.get(name) != old.get(name) for name in {*new, *old} - RESIZABLE):
            found.append(forbidden("spec", "only cpu and memory resources are mutable"))
    if now.get("claims") != was.get("claims"):
        found.append(forbidden("spec", "only cpu and memory resources are mutable"))
    return found
