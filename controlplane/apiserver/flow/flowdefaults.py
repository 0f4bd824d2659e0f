"""The priority levels and flow schemas every cluster begins with.

Owns upstream's suggested and mandatory configuration as a table, so that tools and people find the names, shares and
precedences they know. Pure. Called by `flowcontrol`, which stores what is missing, and keeps `MANDATORY` as it is.

Upstream: k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap.
"""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
API_VERSION = "flowcontrol.apiserver.k8s.io/v1"
AUTO_UPDATE = "apf.kubernetes.io/autoupdate-spec"
MANDATORY = ("exempt", "catch-all")  # of both kinds: without them a request might find no level
# name: shares, lendable percent, queues, hand size (0 queues = refuse what finds no seat); None = exempt
_LEVELS: dict[str, tuple[int, int, int, int] | None] = {
    "exempt": None, "node-high": (40, 25, 64, 6), "leader-election": (10, 0, 16, 4), "system": (30, 33, 64, 6),
    "workload-high": (40, 50, 128, 6), "workload-low": (100, 90, 128, 6), "global-default": (20, 50, 128, 6),
    "catch-all": (5, 0, 0, 0)}
_LONGEST_QUEUE = 50

_EVERYONE = ("Group system:unauthenticated", "Group system:authenticated")
_ANYTHING = ({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": True},)
_ANY_PATH = ({"verbs": ["*"], "nonResourceURLs": ["*"]},)


def _some(verbs: str, group: str, resources: str, namespaces: tuple[str, ...] = ("*",),
          cluster: bool = False) -> Object:
    made: Object = {"verbs": verbs.split(), "apiGroups": [group], "resources": resources.split()}
    if cluster:
        made["clusterScope"] = True
    if namespaces:
        made["namespaces"] = list(namespaces)
    return made


_LEASES = _some("get create update", "coordination.k8s.io", "leases")
_MANAGER, _SCHEDULER = "User system:kube-controller-manager", "User system:kube-scheduler"
_NODES = "Group system:nodes"
# name: level, precedence, distinguisher, subjects, resource rules, non-resource rules
_SCHEMAS: dict[str, tuple[str, int, str, tuple[str, ...], tuple[Object, ...], tuple[Object, ...]]] = {
    "exempt": ("exempt", 1, "", ("Group system:masters",), _ANYTHING, _ANY_PATH),
    "probes": ("exempt", 2, "", _EVERYONE, (),
               ({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]},)),
    "system-leader-election": ("leader-election", 100, "ByUser", (_MANAGER, _SCHEDULER), (_LEASES,), ()),
    "endpoint-controller": (
        "workload-high", 150, "ByUser",
        (_MANAGER, "ServiceAccount kube-system/endpoint-controller",
         "ServiceAccount kube-system/endpointslicemirroring-controller"),
        (_some("get create update", "", "endpoints"),), ()),
    "workload-leader-election": ("leader-election", 200, "ByUser", ("ServiceAccount kube-system/*",), (_LEASES,), ()),
    "system-node-high": ("node-high", 400, "ByUser", (_NODES,), (
        _some("*", "", "nodes nodes/status", (), True), _some("*", "coordination.k8s.io", "leases")), ()),
    "system-nodes": ("system", 500, "ByUser", (_NODES,), _ANYTHING, _ANY_PATH),
    "kube-controller-manager": ("workload-high", 800, "ByNamespace", (_MANAGER,), _ANYTHING, _ANY_PATH),
    "kube-scheduler": ("workload-high", 800, "ByNamespace", (_SCHEDULER,), _ANYTHING, _ANY_PATH),
    "kube-system-service-accounts": ("workload-high", 900, "ByNamespace", ("ServiceAccount kube-system/*",),
                                     _ANYTHING, _ANY_PATH),
    "service-accounts": ("workload-low", 9000, "ByUser", ("Group system:serviceaccounts",), _ANYTHING, _ANY_PATH),
    "global-default": ("global-default", 9900, "ByUser", _EVERYONE, _ANYTHING, _ANY_PATH),
    "catch-all": ("catch-all", 10000, "ByUser", _EVERYONE, _ANYTHING, _ANY_PATH)}


def _metadata(name: str) -> Object:
    return {"name": name, "annotations": {AUTO_UPDATE: "true"}}


def levels() -> list[Object]:
    """The PriorityLevelConfigurations, without identity."""
    made = []
    for name, numbers in _LEVELS.items():
        spec: Object = {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}
        if numbers is not None:
            share, lendable, queues, hand = numbers
            response: Object = {"type": "Reject"}
            if queues:
                response = {"type": "Queue", "queuing": {"queues": queues, "handSize": hand,
                                                         "queueLengthLimit": _LONGEST_QUEUE}}
            spec = {"type": "Limited", "limited": {"nominalConcurrencyShares": share, "lendablePercent": lendable,
                                                   "limitResponse": response}}
        made.append({"apiVersion": API_VERSION, "kind": "PriorityLevelConfiguration", "metadata": _metadata(name),
                     "spec": spec, "status": {}})
    return made


def schemas() -> list[Object]:
    """The FlowSchemas, without identity and status."""
    made = []
    for name, (level, rank, method, subjects, resources, paths) in _SCHEMAS.items():
        rule: Object = {"subjects": [_subject(s) for s in subjects]}
        if resources:
            rule["resourceRules"] = [dict(r) for r in resources]
        if paths:
            rule["nonResourceRules"] = [dict(p) for p in paths]
        spec: Object = {"priorityLevelConfiguration": {"name": level}, "matchingPrecedence": rank, "rules": [rule]}
        if method:
            spec["distinguisherMethod"] = {"type": method}
        made.append({"apiVersion": API_VERSION, "kind": "FlowSchema", "metadata": _metadata(name), "spec": spec})
    return made


def _subject(text: str) -> Object:
    kind, name = text.split(" ")
    if kind == "ServiceAccount":
        namespace, _, account = name.partition("/")
        return {"kind": kind, "serviceAccount": {"namespace": namespace, "name": account}}
    return {"kind": kind, kind.lower(): {"name": name}}
