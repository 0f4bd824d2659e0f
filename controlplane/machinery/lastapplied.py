"""What `kubectl apply` without --server-side left on an object, and how it hands over to server-side apply.

Owns the annotation of the last configuration that a client applied by itself: `yielded` tells which fields that
configuration still holds, which `kubectl apply --server-side` takes over without a conflict, and `renewed` keeps the
annotation true afterwards, so that either way of applying can follow the other. Any other field manager opts out.
Pure. Called by `apply`.

Upstream: k8s.io/apimachinery/pkg/util/managedfields/internal, lastappliedmanager and lastappliedupdater.
"""

from __future__ import annotations

import json
from typing import Any

from controlplane.machinery import fieldsets, objects
from controlplane.machinery.fieldsets import Node, Tree, Unmergeable

Object = dict[str, Any]

MANAGER = "kubectl"
ANNOTATION = "kubectl.kubernetes.io/last-applied-configuration"
MAX_ANNOTATIONS = 256 * 1024  # bytes of an object's annotations together: what validation lets pass


def yielded(live: Object, api_version: str, node: Node) -> Tree:
    """The fields of `live` that are as the client's last configuration, of the version `api_version`, set them."""
    try:
        last = json.loads(objects.annotations(live).get(ANNOTATION) or "null")
        if not isinstance(last, dict) or last.get("apiVersion") != api_version:
            return {}
        changed, removed = fieldsets.compare(last, live, node)
        return fieldsets.difference(fieldsets.difference(fieldsets.of(last, node), changed), removed)
    except (ValueError, Unmergeable):
        return {}  # somebody else wrote into the annotation: it proves nothing


def renewed(merged: Object, config: Object) -> None:
    """Make the annotation of `merged`, where there is one, tell `config`; it goes when there is no room for it."""
    held = objects.annotations(merged)
    if not held.get(ANNOTATION):
        return
    metadata = {key: value for key, value in (config.get("metadata") or {}).items() if key != "managedFields"}
    if ANNOTATION in (metadata.get("annotations") or {}):
        metadata["annotations"] = {k: v for k, v in metadata["annotations"].items() if k != ANNOTATION}
    text = json.dumps({**config, "metadata": metadata}, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    made = {**held, ANNOTATION: text + "\n"}
    if sum(len(key.encode()) + len(str(value).encode()) for key, value in made.items()) > MAX_ANNOTATIONS:
        del made[ANNOTATION]
    merged["metadata"]["annotations"] = made
