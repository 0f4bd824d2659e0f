"""Defaults: what the server fills in when a user leaves it out, per kind, in place.

Pure and idempotent: defaulting a defaulted object changes nothing. It runs on every write before validation. Nothing
here looks at another object, the clock or an allocator (addresses of Services are the apiserver's). Pods and their
templates are in `pods`, other workloads in `workloads`, what a cluster offers them in
`cluster`; a kind that embeds a pod template calls `pods.template` for it.

`of(group, kind)` gives the function; a kind without defaults gets one that does nothing.

Upstream: the zz_generated.defaults and defaults.go of each group.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from controlplane.machinery import customdefinitions
from controlplane.machinery.defaults import cluster, pods, workloads
from controlplane.machinery.defaults.pods import unset

Object = dict[str, Any]
Default = Callable[[Object], None]
RBAC = "rbac.authorization.k8s.io"
CLIENT_IP_TIMEOUT = 10800  # seconds


def namespace(obj: Object) -> None:
    meta = obj["metadata"] = obj.get("metadata") or {}
    if meta.get("name"):
        labels = meta.get("labels") or {}
        meta["labels"] = {**labels, "kubernetes.io/metadata.name": meta["name"]}
    obj["spec"] = obj.get("spec") or {}
    status = obj["status"] = obj.get("status") or {}
    unset(status, "phase", "Active")


def node(obj: Object) -> None:
    obj["spec"] = obj.get("spec") or {}
    status = obj["status"] = obj.get("status") or {}
    for field in ("capacity", "allocatable"):
        pods.quantities(status, field)
    if "allocatable" not in status and status.get("capacity"):
        status["allocatable"] = dict(status["capacity"])


def service(obj: Object) -> None:
    """All but addresses and node ports, and all that hangs on the type."""
    spec = obj["spec"] = obj.get("spec") or {}
    unset(spec, "type", "ClusterIP")
    unset(spec, "sessionAffinity", "None")
    if spec["sessionAffinity"] == "None":
        spec.pop("sessionAffinityConfig", None)
    elif spec["sessionAffinity"] == "ClientIP":
        config = spec["sessionAffinityConfig"] = spec.get("sessionAffinityConfig") or {}
        client = config["clientIP"] = config.get("clientIP") or {}
        if client.get("timeoutSeconds") is None:
            client["timeoutSeconds"] = CLIENT_IP_TIMEOUT
    for port in spec.get("ports") or ():
        unset(port, "protocol", "TCP")
        if port.get("targetPort") in (None, 0, "") and "port" in port:
            port["targetPort"] = port["port"]
    if spec["type"] in ("NodePort", "LoadBalancer"):
        unset(spec, "externalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is None:
        spec["allocateLoadBalancerNodePorts"] = True
    if spec["type"] in ("ClusterIP", "NodePort", "LoadBalancer"):
        unset(spec, "internalTrafficPolicy", "Cluster")
    status = obj["status"] = obj.get("status") or {}
    balancer = status.setdefault("loadBalancer", {})
    if spec["type"] == "LoadBalancer":
        for ingress in balancer.get("ingress") or ():
            if ingress.get("ip"):
                unset(ingress, "ipMode", "VIP")


def endpoints(obj: Object) -> None:
    for subset in obj.get("subsets") or ():
        for port in subset.get("ports") or ():
            unset(port, "protocol", "TCP")


def endpoint_slice(obj: Object) -> None:
    for endpoint in obj.get("endpoints") or ():
        unset(endpoint, "conditions", {})
    for port in obj.get("ports") or ():
        if port.get("name") is None:
            port["name"] = ""
        if port.get("protocol") is None:
            port["protocol"] = "TCP"


def secret(obj: Object) -> None:
    unset(obj, "type", "Opaque")
    texts = obj.pop("stringData", None)
    if texts:
        data = obj["data"] = obj.get("data") or {}
        for key, text in texts.items():
            data[key] = base64.b64encode((text or "").encode()).decode()


def event_v1(obj: Object) -> None:
    """As events.k8s.io shows it."""
    obj.setdefault("deprecatedSource", {})


def event(obj: Object) -> None:
    obj.setdefault("source", {})
    obj.setdefault("reportingComponent", "")
    obj.setdefault("reportingInstance", "")


def _template(spec: Object) -> None:
    template = spec["template"] = spec.get("template") or {}
    pods.template(template)


def deployment(obj: Object) -> None:
    spec = obj["spec"] = obj.get("spec") or {}
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    strategy = spec["strategy"] = spec.get("strategy") or {}
    unset(strategy, "type", "RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = strategy["rollingUpdate"] = strategy.get("rollingUpdate") or {}
        for field in ("maxUnavailable", "maxSurge"):
            if rolling.get(field) is None:
                rolling[field] = "25%"
    for field, value in (("revisionHistoryLimit", 10), ("progressDeadlineSeconds", 600)):
        if spec.get(field) is None:
            spec[field] = value
    _template(spec)
    obj["status"] = obj.get("status") or {}


def replica_set(obj: Object) -> None:
    spec = obj["spec"] = obj.get("spec") or {}
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    _template(spec)
    status = obj["status"] = obj.get("status") or {}
    status.setdefault("replicas", 0)


def replication_controller(obj: Object) -> None:
    spec = obj["spec"] = obj.get("spec") or {}
    if spec.get("replicas") is None:
        spec["replicas"] = 1
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    if labels:
        if not spec.get("selector"):
            spec["selector"] = dict(labels)
        meta = obj["metadata"] = obj.get("metadata") or {}
        if not meta.get("labels"):
            meta["labels"] = dict(labels)
    if spec.get("template") is not None:
        pods.template(spec["template"])
    status = obj["status"] = obj.get("status") or {}
    status.setdefault("replicas", 0)


def role_binding(obj: Object) -> None:
    """Of ClusterRoleBindings too: the groups of the role and of its holders."""
    role = obj["roleRef"] = obj.get("roleRef") or {}
    unset(role, "apiGroup", RBAC)
    for subject in obj.get("subjects") or ():
        if subject.get("kind") in ("User", "Group"):
            unset(subject, "apiGroup", RBAC)


def _spec_only(obj: Object) -> None:
    obj["spec"] = obj.get("spec") or {}


def pod_certificate_request(obj: Object) -> None:
    unset(obj.setdefault("spec", {}), "maxExpirationSeconds", 86400)
    obj["status"] = obj.get("status") or {}


def _nothing(_: Object) -> None:
    return


_BY_KIND: dict[tuple[str, str], Default] = {
    ("", "Namespace"): namespace, ("", "Node"): node, ("", "Pod"): pods.pod, ("", "Service"): service,
    ("", "Endpoints"): endpoints, ("discovery.k8s.io", "EndpointSlice"): endpoint_slice, ("", "Secret"): secret,
    ("", "Event"): event, ("events.k8s.io", "Event"): event_v1,
    ("apps", "Deployment"): deployment, ("apps", "ReplicaSet"): replica_set,
    (RBAC, "RoleBinding"): role_binding, (RBAC, "ClusterRoleBinding"): role_binding,
    ("", "ReplicationController"): replication_controller, ("coordination.k8s.io", "Lease"): _spec_only,
    ("apiextensions.k8s.io", "CustomResourceDefinition"): customdefinitions.default,
    ("certificates.k8s.io", "PodCertificateRequest"): pod_certificate_request,
    **workloads.BY_KIND, **cluster.BY_KIND,
}


def of(group: str, kind: str, version: str = "") -> Default:
    """The defaults of a kind, in the form one of its versions has where they differ."""
    if (group, version, kind) == ("autoscaling", "v1", "HorizontalPodAutoscaler"):
        return workloads.autoscaler_v1
    return _BY_KIND.get((group, kind), _nothing)
