"""What each built-in identity may do: upstream's default roles, as far as this server has a use for them.

Owns the table and its matching; both are pure. A rule reads `verbs [groups] resources` with `core` for the group "",
an optional `names=`, or `verbs URL paths`; rules of a role are separated by `;`. Deny is the absence of a rule. Read
by `authz`, which adds what depends on objects (`nodeauth`), and by `reviews`, which lists a user's rules.

Upstream: k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy. The controllers share one identity here,
so `system:kube-controller-manager` holds the union of what upstream gives each controller's service account.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_ROLES = {
    "cluster-admin": "* [*] *; * URL *",
    "system:basic-user": """
        create [authorization.k8s.io] selfsubjectaccessreviews selfsubjectrulesreviews;
        create [authentication.k8s.io] selfsubjectreviews""",
    "system:discovery": """
        get URL /api /api/* /apis /apis/* /healthz /livez /openapi /openapi/* /readyz /version /version/""",
    "system:public-info-viewer": "get URL /healthz /livez /readyz /version /version/",
    "system:service-account-issuer-discovery": """
        get URL /.well-known/openid-configuration /.well-known/openid-configuration/ /openid/v1/jwks
        /openid/v1/jwks/""",
    "system:monitoring": """
        get URL /healthz /healthz/* /livez /livez/* /metrics /metrics/slis /readyz /readyz/*;
        get [core] nodes/metrics""",
    "system:kube-controller-manager": """
        get,list,watch,patch,update,delete,deletecollection [*] *;
        create [core] configmaps endpoints events namespaces pods secrets serviceaccounts;
        create [core] endpoints/restricted pods/binding pods/eviction serviceaccounts/token;
        create [events.k8s.io] events;
        create [apps] controllerrevisions replicasets;
        create [batch] jobs;
        create [coordination.k8s.io] leases;
        create [discovery.k8s.io] endpointslices endpointslices/restricted;
        create [networking.k8s.io] ipaddresses servicecidrs;
        create [authentication.k8s.io] tokenreviews;
        create [authorization.k8s.io] subjectaccessreviews;
        get URL /healthz /livez /readyz""",
    "system:kube-scheduler": """
        create,patch,update [core,events.k8s.io] events;
        create [coordination.k8s.io] leases;
        get,list,update,watch [coordination.k8s.io] leases names=kube-scheduler;
        get,list,watch [core] nodes namespaces replicationcontrollers services persistentvolumeclaims
        persistentvolumes;
        delete,get,list,watch [core] pods;
        create [core] bindings pods/binding;
        patch,update [core] pods/status;
        get,list,watch [apps] replicasets statefulsets;
        get,list,watch [policy] poddisruptionbudgets;
        get,list,watch [scheduling.k8s.io] priorityclasses;
        get,list,watch [storage.k8s.io] *;
        create [authentication.k8s.io] tokenreviews;
        create [authorization.k8s.io] subjectaccessreviews""",
    "system:node-proxier": """
        get,list,watch [core] endpoints services nodes;
        create,patch,update [core,events.k8s.io] events;
        list,watch [networking.k8s.io] servicecidrs;
        get,list,watch [discovery.k8s.io] endpointslices""",
    "system:node": """
        create [authentication.k8s.io] tokenreviews;
        create [authorization.k8s.io] localsubjectaccessreviews subjectaccessreviews;
        get,list,watch [core] services endpoints;
        get,list,watch [discovery.k8s.io] endpointslices;
        create,get,list,watch,patch,update [core] nodes;
        patch,update [core] nodes/status;
        create,patch,update [core,events.k8s.io] events;
        create,delete,get,list,watch [core] pods;
        patch,update [core] pods/status;
        create [core] pods/eviction;
        get,list,watch [core] configmaps secrets;
        get [core] serviceaccounts;
        create [core] serviceaccounts/token;
        create,get,list,watch [certificates.k8s.io] certificatesigningrequests;
        create,delete,get,patch,update [coordination.k8s.io] leases;
        get,list,watch [node.k8s.io] runtimeclasses;
        get,list,watch [storage.k8s.io] csidrivers;
        create,delete,get,patch,update [storage.k8s.io] csinodes""",
}
# Who holds a role: `user:` or `group:` and the name.
_BINDINGS = {
    "cluster-admin": ("group:system:masters",),
    "system:basic-user": ("group:system:authenticated",),
    "system:discovery": ("group:system:authenticated",),
    "system:public-info-viewer": ("group:system:authenticated", "group:system:unauthenticated"),
    "system:service-account-issuer-discovery": ("group:system:serviceaccounts",),
    "system:monitoring": ("group:system:monitoring",),
    "system:kube-controller-manager": ("user:system:kube-controller-manager",),
    "system:kube-scheduler": ("user:system:kube-scheduler",),
    "system:node-proxier": ("user:system:kube-proxy",),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a role allows. `urls` is set for non-resource rules, the other lists for resource rules."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def allows(self, verb: str, group: str, resource: str, name: str) -> bool:
        """`resource` is `pods` or `pods/log`."""
        return (("*" in self.verbs or verb in self.verbs) and ("*" in self.groups or group in self.groups)
                and ("*" in self.resources or resource in self.resources) and (not self.names or name in self.names))

    def allows_path(self, verb: str, path: str) -> bool:
        return ("*" in self.verbs or verb in self.verbs) and any(
            path == url or (url.endswith("*") and path.startswith(url[:-1])) for url in self.urls)

    def as_dict(self) -> dict[str, Any]:
        """As SubjectRulesReviewStatus lists it."""
        if self.urls:
            return {"verbs": list(self.verbs), "nonResourceURLs": list(self.urls)}
        rule: dict[str, Any] = {"verbs": list(self.verbs), "apiGroups": list(self.groups),
                                "resources": list(self.resources)}
        return rule | ({"resourceNames": list(self.names)} if self.names else {})


def parse(text: str) -> tuple[Rule, ...]:
    """Rules in the table's notation."""
    rules = []
    for line in text.split(";"):
        verbs, where, *what = line.split()
        words = tuple(w for w in what if not w.startswith("names="))
        if where == "URL":
            rules.append(Rule(tuple(verbs.split(",")), urls=words))
            continue
        groups = tuple("" if g == "core" else g for g in where.strip("[]").split(","))
        names = tuple(n for w in what if w.startswith("names=") for n in w[6:].split(","))
        rules.append(Rule(tuple(verbs.split(",")), groups, words, names))
    return tuple(rules)


ROLES = {name: parse(text) for name, text in _ROLES.items()}
NODE = ROLES["system:node"]


def _by_subject() -> dict[str, list[tuple[str, str, Rule]]]:
    subjects: dict[str, list[tuple[str, str, Rule]]] = {}
    for role, holders in _BINDINGS.items():
        for holder in holders:
            subjects.setdefault(holder, []).extend((role, holder, rule) for rule in ROLES[role])
    return subjects


_SUBJECTS = _by_subject()


def rules_of(name: str, groups: Iterable[str]) -> Iterator[tuple[str, str, Rule]]:
    """Role, holder (`user:…`, `group:…`) and rule, of everything a user holds."""
    yield from _SUBJECTS.get(f"user:{name}", ())
    for group in groups:
        yield from _SUBJECTS.get(f"group:{group}", ())
