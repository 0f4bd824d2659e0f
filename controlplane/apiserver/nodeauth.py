"""A node and its pods: what a kubelet may read and change, and nothing beyond.

Owns two questions. `NodeAuthorizer.fault` (the Node authorizer) looks at the request: secrets, config maps, service
accounts and their tokens are open to a node only while one of its pods refers to them; leases only its own; lists of
pods only narrowed to itself. `restrict` (NodeRestriction) looks at the object: a node changes only its own Node, only
labels of kubelets, no taints, and only pods bound to it. The relation is read from the watch cache at the time of
asking, by names first, so that no graph is kept. Called by `authz`.

Upstream: k8s.io/kubernetes/plugin/pkg/auth/authorizer/node and plugin/pkg/admission/noderestriction.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.context import Context
from controlplane.machinery import rbacdefaults
from controlplane.machinery.errors import Forbidden
from controlplane.store.cache import prefix_of

if TYPE_CHECKING:
    from controlplane.apiserver.access import Attributes
    from controlplane.apiserver.request import Request
    from controlplane.apiserver.user import User

PREFIX = "system:node:"
GROUP = "system:nodes"
NO_RULE = "no rule"
LEASES = "kube-node-lease"
MIRROR = "kubernetes.io/config.mirror"
Object = dict[str, Any]
# Labels a kubelet may set on its own node: upstream's kubelet labels and the prefixes meant for it.
_KUBELET_LABELS = frozenset((
    "kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os", "beta.kubernetes.io/instance-type", "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region", "failure-domain.beta.kubernetes.io/zone",
    "topology.kubernetes.io/region", "topology.kubernetes.io/zone"))
_KUBELET_PREFIXES = ("kubelet.kubernetes.io", "node.kubernetes.io")
_REACHED_BY_POD = ("secrets", "configmaps")


def node_of(user: User) -> str:
    """The node a user is, "" when it is none."""
    name: str = user.name
    return name[len(PREFIX):] if name.startswith(PREFIX) and GROUP in user.groups else ""


class NodeAuthorizer:
    """Relates nodes to objects through their pods."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def fault(self, a: Attributes) -> str:
        """Why a node may not, "" when it may."""
        if not a.plural:
            return NO_RULE
        if not any(rule.concerns(a.verb, a.group, a.plural, a.subresource) for rule in rbacdefaults.node_rules()):
            return NO_RULE
        node = node_of(a.user)
        if a.group == "" and a.plural in _REACHED_BY_POD:
            if not a.object_name:
                return "No Object name found"
            return self._unrelated(node, a.plural, a.namespace, a.object_name)
        if a.group == "" and a.plural == "serviceaccounts":
            return self._unrelated(node, "serviceaccounts", a.namespace, a.name)
        if a.group == "" and a.plural == "pods" and a.verb in ("list", "watch"):
            if a.exact("spec.nodeName") != node and not (a.namespace and a.object_name):
                return "can only list/watch pods with spec.nodeName field selector"
        elif a.group == "coordination.k8s.io":
            if a.namespace != LEASES:
                return f"can only access leases in the \"{LEASES}\" system namespace"
            if a.verb != "create" and a.name != node:
                return "can only access node lease with the same name as the requesting node"
        return ""

    def _unrelated(self, node: str, plural: str, namespace: str, name: str) -> str:
        if any(name in refers_to(pod, plural) for pod in self._pods(node, namespace, name)):
            return ""
        return f"no relationship found between node '{node}' and this object"

    def _pods(self, node: str, namespace: str, mentioning: str) -> Iterator[Object]:
        """Pods of a node in a namespace whose bytes mention a name: few are decoded."""
        needles = (f'"{mentioning}"'.encode(), f'"{node}"'.encode())
        for item in self._context.cache.list(prefix_of("pods", namespace)):
            if all(n in item.data for n in needles) and (item.obj.get("spec") or {}).get("nodeName") == node:
                yield item.obj


def refers_to(pod: Object, plural: str) -> set[str]:
    """Names of the secrets, config maps or service accounts a pod's spec refers to. Pure."""
    spec = pod.get("spec") or {}
    if plural == "serviceaccounts":
        return {spec.get("serviceAccountName") or "default"}
    secrets = plural == "secrets"
    found = {r.get("name") for r in spec.get("imagePullSecrets") or ()} if secrets else set()
    word = "secret" if secrets else "configMap"
    for container in [c for k in ("initContainers", "containers", "ephemeralContainers") for c in spec.get(k) or ()]:
        found |= {(e.get(f"{word}Ref") or {}).get("name") for e in container.get("envFrom") or ()}
        found |= {((e.get("valueFrom") or {}).get(f"{word}KeyRef") or {}).get("name")
                  for e in container.get("env") or ()}
    for volume in spec.get("volumes") or ():
        sources = (volume.get("projected") or {}).get("sources") or ()
        for source in (volume, *sources):
            reference = source.get(word) or {}
            found |= {reference.get("secretName"), reference.get("name")}
    return {n for n in found if n}


def restrict(node: str, request: Request, obj: Object | None, old: Object | None) -> None:
    """Raise Forbidden when `node` writes what is not its own. Pure."""
    group, plural, sub = request.target.group, request.plural, request.subresource
    if group == "" and plural == "pods":
        why = _pod_fault(node, request.verb, sub, obj, old)
    elif group == "" and plural == "nodes":
        why = _node_fault(node, request, obj, old)
    elif group == "" and plural == "serviceaccounts" and sub == "token":
        bound = ((obj or {}).get("spec") or {}).get("boundObjectRef") or {}
        why = "" if bound.get("kind") == "Pod" else "node requested token not bound to a pod"
        if not why and not bound.get("uid"):
            why = "node requested token with a pod binding without a uid"
    elif group == "coordination.k8s.io" and plural == "leases":
        name = ((obj or old or {}).get("metadata") or {}).get("name", request.name)
        why = "" if name == node else "can only access node lease with the same name as the requesting node"
    else:
        return
    if why:
        name = request.name or ((obj or {}).get("metadata") or {}).get("name", "")
        raise Forbidden.of(plural, name, why, group)


def _pod_fault(node: str, verb: str, sub: str, obj: Object | None, old: Object | None) -> str:
    def bound(pod: Object | None) -> bool:
        return ((pod or {}).get("spec") or {}).get("nodeName") == node

    if sub == "":
        if verb == "create":
            annotations = ((obj or {}).get("metadata") or {}).get("annotations") or {}
            if MIRROR not in annotations:
                return f'pod does not have "{MIRROR}" annotation, node "{node}" can only create mirror pods'
            return "" if bound(obj) else f'node "{node}" can only create pods with spec.nodeName set to itself'
        if verb == "delete":
            return "" if bound(old or obj) else f'node "{node}" can only delete pods with spec.nodeName set to itself'
        return f'unexpected operation "{verb.upper()}", node "{node}" can only create and delete mirror pods'
    if sub == "status":
        if not bound(old or obj):
            return f'node "{node}" can only update pod status for pods with spec.nodeName set to itself'
        before, after = (((o or {}).get("metadata") or {}).get("labels") or {} for o in (old, obj))
        return "" if before == after else f'node "{node}" cannot update labels through pod status'
    if sub == "eviction":
        own = old is None or bound(old)
        return "" if own else f'node "{node}" can only evict pods with spec.nodeName set to itself'
    return f'unexpected pod subresource "{sub}", only \'status\' and \'eviction\' are allowed'


def _node_fault(node: str, request: Request, obj: Object | None, old: Object | None) -> str:
    metadata = (obj or {}).get("metadata") or {}
    name = request.name or metadata.get("name", "")
    if name != node:
        return f'node "{node}" is not allowed to modify node "{name}"'
    if request.verb == "delete":
        return f'node "{node}" is not allowed to delete nodes'
    labels = metadata.get("labels") or {}
    if request.verb == "create":
        if odd := sorted(k for k in labels if not may_label(k)):
            return f'node "{node}" is not allowed to set the following labels: {", ".join(odd)}'
        return ""
    was = ((old or {}).get("metadata") or {}).get("labels") or {}
    changed = sorted(k for k in labels.keys() | was.keys() if labels.get(k) != was.get(k) and not may_label(k))
    if changed:
        return f'is not allowed to modify labels: {", ".join(changed)}'
    if obj is not None and old is not None:
        after, before = ((o.get("spec") or {}).get("taints") or [] for o in (obj, old))
        if after != before:
            return f'node "{node}" is not allowed to modify taints'
        if metadata.get("ownerReferences") != (old.get("metadata") or {}).get("ownerReferences"):
            return f'node "{node}" is not allowed to modify ownerReferences'
    return ""


def may_label(key: str) -> bool:
    """Whether a node may set this label on itself: those of kubelets, and any outside Kubernetes' own domains."""
    if key in _KUBELET_LABELS:
        return True
    domain = key.partition("/")[0] if "/" in key else ""
    if any(domain == p or domain.endswith("." + p) for p in _KUBELET_PREFIXES):
        return True
    return not any(domain == d or domain.endswith("." + d) for d in ("kubernetes.io", "k8s.io"))
