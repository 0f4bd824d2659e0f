"""Pod templates: the pod that an owner's stands for, and the hash by which templates are told apart.

Pure. Promises that what an API server may or may not write makes no other template. Called by the plans of all kinds.

Upstream: pkg/controller/controller_utils.go (GetPodFromTemplate, ComputeHash).
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from controlplane.machinery import objects
from controlplane.machinery.clock import ALPHABET

HASH_LABEL = "pod-template-hash"  # of a Deployment's ReplicaSets and their pods
HASH_LENGTH = 10

Obj = dict[str, Any]


def pod_of(owner: Obj) -> Obj:
    """The pod of the owner's template, without a name; the caller's to change."""
    template = owner["spec"]["template"]
    source = template.get("metadata") or {}
    meta: Obj = {"namespace": objects.namespace(owner), "ownerReferences": [objects.owner_reference(owner)]}
    meta |= {field: source[field] for field in ("labels", "annotations", "finalizers") if source.get(field)}
    return objects.deep_copy({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template.get("spec") or {}})


def hash_of(template: Obj, collisions: int = 0) -> str:
    """A label value that stands for the template; `collisions` makes another one of the same template."""
    text = orjson.dumps([plain(template), collisions], option=orjson.OPT_SORT_KEYS)
    number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
    digits = []
    for _ in range(HASH_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(digits)


def plain(template: Obj) -> Obj:
    """The template without the hash label, and without what an API server may or may not write as empty."""
    meta = dict(template.get("metadata") or {})
    meta["labels"] = {k: v for k, v in (meta.get("labels") or {}).items() if k != HASH_LABEL}
    return {"metadata": {k: v for k, v in meta.items() if v and k != "creationTimestamp"},
            "spec": template.get("spec") or {}}
