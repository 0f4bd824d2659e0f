"""The roles and bindings every cluster begins with, and how an older copy of one is brought up to date.

Owns the objects (`objects`, in the order to make them) and `reconciled`. Pure, but for reading the table once. The
controllers share one identity here, `system:kube-controller-manager`, so it also holds `pelamis:controllers`: the
union of what upstream gives each controller's service account, and what our controllers need besides. Called by the
apiserver at start, and by the node authorizer for the rules of nodes.

Upstream: k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy and pkg/registry/rbac/reconciliation.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from controlplane.machinery import rbac
from controlplane.machinery.data import ROLES
from controlplane.machinery.objects import deep_copy
from controlplane.machinery.rbac import Rule

Object = dict[str, Any]
GROUP = "rbac.authorization.k8s.io"
LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
AUTOUPDATE = "rbac.authorization.kubernetes.io/autoupdate"
CONTROLLERS = "pelamis:controllers"
CONTROLLER = "system:controller:"
# Who holds a ClusterRole by a binding of the same name; controllers' own accounts are added to these.
_CLUSTER_BINDINGS: dict[str, tuple[str, ...]] = {
    "cluster-admin": ("Group system:masters",),
    "system:basic-user": ("Group system:authenticated",),
    "system:discovery": ("Group system:authenticated",),
    "system:public-info-viewer": ("Group system:authenticated", "Group system:unauthenticated"),
    "system:service-account-issuer-discovery": ("Group system:serviceaccounts",),
    "system:cluster-trust-bundle-discovery": ("Group system:serviceaccounts",),
    "system:monitoring": ("Group system:monitoring",),
    "system:kube-controller-manager": ("User system:kube-controller-manager",),
    "system:kube-scheduler": ("User system:kube-scheduler",),
    "system:volume-scheduler": ("User system:kube-scheduler",),
    "system:node-proxier": ("User system:kube-proxy",),
    "system:kube-dns": ("ServiceAccount kube-system/kube-dns",),
    "system:node": (),  # nodes are authorized by their pods, not by this
    CONTROLLERS: ("User system:kube-controller-manager",),
    "pelamis:node-network": ("User system:kube-proxy",),  # every node's DNS and policies beside its service proxy
}
# namespace/name of a RoleBinding: the Role and who holds it.
_BINDINGS: dict[str, tuple[str, ...]] = {
    "kube-system/system::extension-apiserver-authentication-reader": (
        "extension-apiserver-authentication-reader", "User system:kube-controller-manager",
        "User system:kube-scheduler"),
    "kube-system/system::leader-locking-kube-controller-manager": (
        "system::leader-locking-kube-controller-manager", "User system:kube-controller-manager",
        "ServiceAccount kube-system/kube-controller-manager"),
    "kube-system/system::leader-locking-kube-scheduler": (
        "system::leader-locking-kube-scheduler", "User system:kube-scheduler",
        "ServiceAccount kube-system/kube-scheduler"),
    "kube-system/system:controller:bootstrap-signer": (
        "system:controller:bootstrap-signer", "ServiceAccount kube-system/bootstrap-signer"),
    "kube-system/system:controller:cloud-provider": (
        "system:controller:cloud-provider", "ServiceAccount kube-system/cloud-provider"),
    "kube-system/system:controller:token-cleaner": (
        "system:controller:token-cleaner", "ServiceAccount kube-system/token-cleaner"),
    "kube-system/pelamis:dns": ("pelamis:dns", "User system:kube-proxy"),
    "kube-public/system:controller:bootstrap-signer": (
        "system:controller:bootstrap-signer", "ServiceAccount kube-system/bootstrap-signer"),
}


def _paragraphs() -> list[tuple[str, list[str]]]:
    """Each role's first line and its rules as text."""
    found: list[tuple[str, list[str]]] = []
    for line in ROLES.read_text().splitlines():
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        if not line.startswith(" "):
            found.append((text, []))
        elif line.startswith("   "):
            found[-1][1][-1] += " " + text
        else:
            found[-1][1].append(text)
    return found


def _role(head: str, lines: list[str]) -> Object:
    words, _, gathers = (part.split() for part in head.partition(" = "))
    kind, name, *carries = words
    namespace, _, plain = name.rpartition("/") if kind == "Role" else ("", "", name)
    role = _object(kind, plain, namespace, {f"{GROUP}/{label}": "true" for label in carries})
    role["rules"] = [rbac.parse(line).as_dict() for line in lines]
    if gathers:
        role["aggregationRule"] = {"clusterRoleSelectors": [
            {"matchLabels": {f"{GROUP}/{label}": "true"}} for label in gathers]}
    return role


def _object(kind: str, name: str, namespace: str = "", labels: dict[str, str] | None = None) -> Object:
    metadata: Object = {"name": name} | ({"namespace": namespace} if namespace else {})
    metadata |= {"labels": {**LABELS, **(labels or {})}, "annotations": {AUTOUPDATE: "true"}}
    return {"apiVersion": f"{GROUP}/v1", "kind": kind, "metadata": metadata}


def _binding(kind: str, name: str, namespace: str, role: tuple[str, str], holders: tuple[str, ...]) -> Object:
    binding = _object(kind, name, namespace)
    binding["roleRef"] = {"apiGroup": GROUP, "kind": role[0], "name": role[1]}
    subjects = [_subject(holder) for holder in holders]
    return binding | ({"subjects": subjects} if subjects else {})


def _subject(holder: str) -> Object:
    kind, _, name = holder.partition(" ")
    if kind != "ServiceAccount":
        return {"apiGroup": GROUP, "kind": kind, "name": name}
    namespace, _, account = name.partition("/")
    return {"kind": kind, "name": account, "namespace": namespace}


def objects() -> list[Object]:
    """Every default role, then every default binding."""
    roles = [_role(head, lines) for head, lines in _paragraphs()]
    controllers = [r for r in roles if r["kind"] == "ClusterRole" and r["metadata"]["name"].startswith(CONTROLLER)]
    for role in roles:
        if role["metadata"]["name"] == CONTROLLERS:
            wanted = [rule for controller in controllers for rule in rbac.of_role(controller)]
            lacking = rbac.compact(rbac.missing(rbac.of_role(role), wanted))
            role["rules"] += [rule.as_dict() for rule in lacking]
    made = list(roles)
    for name, holders in _CLUSTER_BINDINGS.items():
        made.append(_binding("ClusterRoleBinding", name, "", ("ClusterRole", name), holders))
    for role in controllers:
        name = role["metadata"]["name"]
        account = f"ServiceAccount kube-system/{name[len(CONTROLLER):]}"
        made.append(_binding("ClusterRoleBinding", name, "", ("ClusterRole", name), (account,)))
    for place, (role_name, *held) in _BINDINGS.items():
        namespace, _, name = place.partition("/")
        made.append(_binding("RoleBinding", name, namespace, ("Role", role_name), tuple(held)))
    return made


@lru_cache(1)
def node_rules() -> tuple[Rule, ...]:
    """What the node authorizer lets nodes do, before it looks at objects."""
    return next(tuple(map(rbac.parse, lines)) for head, lines in _paragraphs() if head == "ClusterRole system:node")


def reconciled(stored: Object, right: Object) -> Object | None:
    """The stored object with what it lacks of `right`; nothing is taken away, and nothing is changed when its owner
    switched that off. None when the binding is to another role: then it must be made anew."""
    notes = stored["metadata"].get("annotations") or {}
    if notes.get(AUTOUPDATE) == "false":
        return stored
    new: Object = deep_copy(stored)
    metadata = new["metadata"]
    for field in ("labels", "annotations"):
        metadata[field] = {**right["metadata"][field], **(metadata.get(field) or {})}
    if "roleRef" in right:
        if stored.get("roleRef") != right["roleRef"]:
            return None
        have = new.get("subjects") or []
        more = [s for s in right.get("subjects") or () if s not in have]
        return new | ({"subjects": have + more} if more else {})
    if "aggregationRule" in right:
        rule = new.get("aggregationRule") or {}
        have = rule.get("clusterRoleSelectors") or []
        more = [s for s in right["aggregationRule"]["clusterRoleSelectors"] if s not in have]
        return new | ({"aggregationRule": {**rule, "clusterRoleSelectors": have + more}} if more else {})
    lacking = rbac.compact(rbac.missing(rbac.of_role(stored), rbac.of_role(right)))
    return new | ({"rules": (new.get("rules") or []) + [r.as_dict() for r in lacking]} if lacking else {})
