"""A node and its pods: what a kubelet may read and change, and nothing beyond.

Owns two questions. `NodeAuthorizer.fault` (the Node authorizer) looks at the request: secrets, config maps, claims,
volumes, service accounts and their tokens are open to a node only while one of its pods refers to them; its Node, its
lease and its CSINode only by its own name; lists of pods and nodes only narrowed to itself. `restrict`
(NodeRestriction) looks at the object: a node changes only its own Node, only labels of kubelets, no taints, only pods
bound to it, and asks for certificates only in its own name. The relation is read from the watch cache at the time of
asking, by names first, so that no graph is kept. Called by `authz`.

Upstream: k8s.io/kubernetes/plugin/pkg/auth/authorizer/node and plugin/pkg/admission/noderestriction.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.context import Context
from controlplane.machinery import rbacdefaults
from controlplane.machinery.errors import Forbidden
from controlplane.machinery.nodelabels import may_label
from controlplane.store.cache import key_of, prefix_of

if TYPE_CHECKING:
    from controlplane.apiserver.authentication.user import User
    from controlplane.apiserver.authorization.access import Attributes
    from controlplane.apiserver.request import Request

PREFIX = "system:node:"
GROUP = "system:nodes"
NO_RULE = "no rule"
LEASES = "kube-node-lease"
MIRROR = "kubernetes.io/config.mirror"
Object = dict[str, Any]
_REACHED_BY_POD = ("secrets", "configmaps", "persistentvolumeclaims")
_CERTIFICATES = ("kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving")
_MAX_REQUEST = 64 * 1024  # bytes of a PKCS #10 text in base64; a node's is some hundred


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
            why = self._unrelated(node, a.plural, a.namespace, a.object_name)
            return "" if why and a.plural == "secrets" and self._of_volume(node, a.namespace, a.object_name) else why
        if a.group == "" and a.plural == "serviceaccounts":
            return self._unrelated(node, "serviceaccounts", a.namespace, a.name)
        if a.group == "" and a.plural == "persistentvolumes":
            return self._volume_fault(node, a.name)
        if a.group == "resource.k8s.io" and a.plural == "resourceclaims":
            return self._unrelated(node, "resourceclaims", a.namespace, a.name)
        if a.group == "storage.k8s.io" and a.plural == "volumeattachments":
            item = self._context.cache.get(key_of("volumeattachments.storage.k8s.io", "", a.name))
            own = item is not None and (item.obj.get("spec") or {}).get("nodeName") == node
            return "" if own else f"no relationship found between node '{node}' and this object"
        if a.group == "storage.k8s.io" and a.plural == "csinodes":
            own = a.verb == "create" or a.object_name == node
            return "" if own else "can only access CSINode with the same name as the requesting node"
        if a.plural == "resourceslices" and a.verb == "deletecollection" and a.exact("spec.nodeName") != node:
            return "can only deletecollection resourceslices with spec.nodeName field selector"
        if a.plural == "podcertificaterequests" and a.verb != "create":
            return self._request_of(node, a)
        if a.group == "" and a.plural == "nodes" and a.verb in ("get", "list", "watch"):
            return "" if a.object_name == node else f"node '{node}' cannot read '{a.name}', only its own Node object"
        if a.group == "" and a.plural == "pods" and a.verb in ("list", "watch"):
            if a.exact("spec.nodeName") != node and not (a.namespace and a.object_name):
                return "can only list/watch pods with spec.nodeName field selector"
        elif a.group == "coordination.k8s.io":
            if a.namespace != LEASES:
                return f"can only access leases in the \"{LEASES}\" system namespace"
            if a.verb != "create" and a.name != node:
                return "can only access node lease with the same name as the requesting node"
        return ""

    def _request_of(self, node: str, a: Attributes) -> str:
        """Why a node may not read requests for pods' certificates: they are another node's."""
        if a.verb in ("list", "watch"):
            return "" if a.exact("spec.nodeName") == node else \
                "can only list/watch podcertificaterequests with spec.nodeName field selector"
        found = self._object("podcertificaterequests.certificates.k8s.io", a.namespace, a.name)
        own = (found.get("spec") or {}).get("nodeName") == node
        return "" if own else f"no relationship found between node '{node}' and this object"

    def _unrelated(self, node: str, plural: str, namespace: str, name: str) -> str:
        if any(name in refers_to(pod, plural) for pod in self._pods(node, namespace, name)):
            return ""
        return f"no relationship found between node '{node}' and this object"

    def admit(self, node: str, request: Request, obj: Object | None, old: Object | None) -> None:
        """Raise Forbidden when `node` writes what is not its own, or asks for a token that no pod of its mounts."""
        restrict(node, request, obj, old)
        tokens = request.plural == "serviceaccounts" and request.subresource == "token"
        if tokens and (why := self._token_fault(node, request.namespace, obj or {})):
            raise Forbidden.of("serviceaccounts", request.name, why)
        certificate = request.plural == "podcertificaterequests" and request.verb == "create"
        if certificate and (why := self._certificate_fault(node, request.namespace, (obj or {}).get("spec") or {})):
            raise Forbidden.of("podcertificaterequests", request.name, why, "certificates.k8s.io")

    def _certificate_fault(self, node: str, namespace: str, asked: Object) -> str:
        """Why a node may not ask for this certificate: the pod is another's, another one, or mounts none such."""
        if asked.get("nodeName") != node:
            return f'PodCertificateRequest.Spec.NodeName="{asked.get("nodeName", "")}", which is another node\'s'
        pod = self._object("pods", namespace, asked.get("podName") or "")
        spec = pod.get("spec") or {}
        if not pod or pod["metadata"]["uid"] != asked.get("podUID"):
            return f'pod "{asked.get("podName", "")}" with this UID not found'
        if MIRROR in (pod["metadata"].get("annotations") or {}):
            return "pod is a mirror pod"
        if spec.get("nodeName") != node:
            return f"pod is not scheduled on node {node}"
        account = spec.get("serviceAccountName") or "default"
        if account != asked.get("serviceAccountName"):
            return "PodCertificateRequest.Spec.ServiceAccountName does not match the pod's"
        for plural, place, name, field in (("serviceaccounts", namespace, account, "serviceAccountUID"),
                                           ("nodes", "", node, "nodeUID")):
            if (self._object(plural, place, name).get("metadata") or {}).get("uid") != asked.get(field):
                return f"PodCertificateRequest.Spec.{field[0].upper()}{field[1:]} does not match that of {name}"
        if asked.get("signerName") in {c.get("signerName") for c in projected(pod, "podCertificate")}:
            return ""
        return f'signer "{asked.get("signerName", "")}" not found in pod spec volumes'

    def _token_fault(self, node: str, namespace: str, asked: Object) -> str:
        """Why a node may not have this token, bound to a pod: the pod is another node's, or mounts no such token."""
        spec = asked.get("spec") or {}
        bound = spec.get("boundObjectRef") or {}
        item = self._context.cache.get(key_of("pods", namespace, bound.get("name") or ""))
        if item is None or item.obj["metadata"]["uid"] != bound.get("uid"):
            return ""  # that there is none such is told by who makes the token
        if (item.obj.get("spec") or {}).get("nodeName") != node:
            return "node requested token bound to a pod scheduled on a different node"
        audiences = spec.get("audiences") or [""]
        if len(audiences) > 1:
            return "node may only request 0 or 1 audiences"
        if audiences[0] in mounted_audiences(item.obj) or audiences[0] in self._driver_audiences(namespace, item.obj):
            return ""
        return (f'audience "{audiences[0]}" not found in pod spec volume, {PREFIX}{node} is not authorized to request '
                "tokens for this audience")

    def _driver_audiences(self, namespace: str, pod: Object) -> set[str]:
        """The audiences of the tokens that the storage drivers of the pod's volumes ask for."""
        drivers = {v["csi"].get("driver") for v in (pod.get("spec") or {}).get("volumes") or () if v.get("csi")}
        for claim in refers_to(pod, "persistentvolumeclaims"):
            volume = self._object("persistentvolumeclaims", namespace, claim)
            found = self._object("persistentvolumes", "", (volume.get("spec") or {}).get("volumeName") or "")
            drivers.add(((found.get("spec") or {}).get("csi") or {}).get("driver"))
        specs = [self._object("csidrivers.storage.k8s.io", "", name).get("spec") or {} for name in drivers if name]
        return {token.get("audience") or "" for spec in specs for token in spec.get("tokenRequests") or ()}

    def _object(self, plural: str, namespace: str, name: str) -> Object:
        item = self._context.cache.get(key_of(plural, namespace, name)) if name else None
        return item.obj if item is not None else {}

    def _volume_fault(self, node: str, name: str) -> str:
        """A volume is reached through the claim it is bound to."""
        item = self._context.cache.get(key_of("persistentvolumes", "", name))
        claim = ((item.obj.get("spec") or {}).get("claimRef") or {}) if item is not None else {}
        return self._unrelated(node, "persistentvolumeclaims", claim.get("namespace", ""), claim.get("name", ""))

    def _of_volume(self, node: str, namespace: str, name: str) -> bool:
        """Whether the driver of a volume the node may reach is given this secret."""
        for item in self._context.cache.list(prefix_of("persistentvolumes")):
            if b"SecretRef" not in item.data or f'"{name}"'.encode() not in item.data:
                continue
            csi = (item.obj.get("spec") or {}).get("csi") or {}
            given = [csi.get(f"node{step}SecretRef") or {} for step in ("Stage", "Publish", "Expand")]
            if any((g.get("namespace"), g.get("name")) == (namespace, name) for g in given) \
                    and not self._volume_fault(node, item.obj["metadata"]["name"]):
                return True
        return False

    def _pods(self, node: str, namespace: str, mentioning: str) -> Iterator[Object]:
        """Pods of a node in a namespace that may refer to a name, by their bytes: few are decoded."""
        if not namespace or not mentioning:
            return
        own, named = f'"{node}"'.encode(), f'"{mentioning}"'.encode()
        for item in self._context.cache.list(prefix_of("pods", namespace)):
            near = own in item.data and (named in item.data or b'"ephemeral"' in item.data)
            if near and (item.obj.get("spec") or {}).get("nodeName") == node:
                yield item.obj


def refers_to(pod: Object, plural: str) -> set[str]:
    """Names of the secrets, config maps, service accounts or claims a pod refers to. Pure."""
    spec = pod.get("spec") or {}
    if plural == "serviceaccounts":
        return {spec.get("serviceAccountName") or "default"}
    if plural == "persistentvolumeclaims":
        return {f"{pod['metadata']['name']}-{v['name']}" if "ephemeral" in v
                else (v.get("persistentVolumeClaim") or {}).get("claimName", "") for v in spec.get("volumes") or ()}
    if plural == "resourceclaims":
        status = pod.get("status") or {}
        made = (*(status.get("resourceClaimStatuses") or ()), status.get("extendedResourceClaimStatus") or {})
        return {c.get("resourceClaimName") or "" for c in (*(spec.get("resourceClaims") or ()), *made)}
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
        if secrets:
            found.add(((volume.get("csi") or {}).get("nodePublishSecretRef") or {}).get("name"))
    return {n for n in found if n}


def mounted_audiences(pod: Object) -> set[str]:
    """The audiences of the tokens a pod mounts, "" for the API server's own. Pure."""
    return {token.get("audience") or "" for token in projected(pod, "serviceAccountToken")}


def projected(pod: Object, kind: str) -> list[Object]:
    """The sources of a kind in the pod's projected volumes. Pure."""
    return [s[kind] for v in (pod.get("spec") or {}).get("volumes") or ()
            for s in (v.get("projected") or {}).get("sources") or () if s.get(kind)]


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
    elif group == "certificates.k8s.io" and plural == "certificatesigningrequests" and request.verb == "create":
        why = _request_fault(node, (obj or {}).get("spec") or {})
    elif group == "storage.k8s.io" and plural == "csinodes":
        name = ((obj or old or {}).get("metadata") or {}).get("name", request.name)
        why = "" if name == node else "can only access CSINode with the same name as the requesting node"
    elif group == "resource.k8s.io" and plural == "resourceslices":
        own = all(((o or {}).get("spec") or {}).get("nodeName") == node for o in (obj, old) if o)
        why = "" if own else "can only access ResourceSlice with the same nodeName as the requesting node"
    else:
        return
    if why:
        name = request.name or ((obj or {}).get("metadata") or {}).get("name", "")
        raise Forbidden.of(plural, name, why, group)


def _request_fault(node: str, spec: Object) -> str:
    """Why a node may not ask for this certificate: it would be another node's."""
    if spec.get("signerName") not in _CERTIFICATES:
        return ""
    from cryptography import x509
    from cryptography.x509.oid import NameOID
    try:
        text = (spec.get("request") or "")[:_MAX_REQUEST]
        names = x509.load_pem_x509_csr(base64.b64decode(text)).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        return f"unable to parse csr: {error}"
    foreign = any(str(n.value).startswith(PREFIX) and n.value != PREFIX + node for n in names)
    return f"can only create a node CSR with CN={PREFIX}{node}" if foreign else ""


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
