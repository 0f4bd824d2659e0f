"""The scale subresource of custom resources: the paths a definition names, read as autoscaling/v1 Scale.

Pure. Called by `subresources`.

Upstream: k8s.io/apiextensions-apiserver/pkg/registry/customresource/etcd.go (ScaleREST).
"""

from __future__ import annotations

from typing import Any

from controlplane.machinery.errors import BadRequest

Object = dict[str, Any]
# How upstream calls the kinds of JSON values.
_KINDS = {str: "string", bool: "bool", float: "float64", dict: "map[string]interface {}", list: "[]interface {}"}


def _read(obj: Object, path: str) -> Any:
    found: Any = obj
    for step in path.strip(".").split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def scale_of(obj: Object, paths: Object) -> Object:
    """The Scale of an object. Raises BadRequest when the replicas are no whole number: no Scale can tell them."""
    metadata = obj["metadata"]
    replicas = _read(obj, paths["specReplicasPath"])
    if replicas is None:
        replicas = 0
    if isinstance(replicas, bool) or not isinstance(replicas, int):
        raise BadRequest(f"{paths['specReplicasPath']} accessor error: {replicas} is of the type "
                         f"{_KINDS.get(type(replicas), 'unknown')}, expected int64")
    shown = {k: metadata[k] for k in ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
             if k in metadata}
    observed = _read(obj, paths["statusReplicasPath"])
    status: Object = {"replicas": observed if isinstance(observed, int) else 0}
    if (where := paths.get("labelSelectorPath")) and isinstance(selector := _read(obj, where), str) and selector:
        status["selector"] = selector
    return {"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": shown,
            "spec": {"replicas": replicas} if replicas else {}, "status": status}


def scaled(obj: Object, paths: Object, replicas: int) -> Object:
    """The object with other replicas; shares with `obj` what is not on the way there."""
    new = dict(obj)
    at = new
    *steps, last = paths["specReplicasPath"].strip(".").split(".")
    for step in steps:
        inner = at.get(step)
        at[step] = dict(inner) if isinstance(inner, dict) else {}
        at = at[step]
    at[last] = replicas
    return new
