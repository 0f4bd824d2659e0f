"""What belongs to every cluster and is an object like any other: the DNS Service, and what the node's network may read.

Owns these objects at `up`: an absent one is made, roles are made right, but the DNS Service of somebody who replaced it
stays theirs. `wanted` is pure.

Called by `up` once the node is ready.
"""

from __future__ import annotations

from typing import Any

from controlplane.cli.settings import Settings
from controlplane.machinery.errors import AlreadyExists, Finding, Invalid, NotFound
from controlplane.machinery.resources import Resource, named

Obj = dict[str, Any]
PROXY = "system:kube-proxy"  # who the service proxy, the DNS and the policies are to the API
ROLE = "pelamis:node-network"
READ = ["get", "list", "watch"]


def wanted(settings: Settings) -> list[tuple[str, Obj]]:
    """(resource, object), in the order to make them."""
    return [*_role(), ("services", _dns_service(settings))]


def _role() -> list[tuple[str, Obj]]:
    group = "rbac.authorization.k8s.io"
    about = {"name": ROLE, "labels": {"app.kubernetes.io/managed-by": "pelamis"}}
    rules = [{"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": READ},
             {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kube-dns"], "verbs": READ},
             {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": READ}]
    binding = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": dict(about),
               "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": ROLE},
               "subjects": [{"apiGroup": group, "kind": "User", "name": PROXY}]}
    return [(f"clusterroles.{group}", {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": about,
                                       "rules": rules}),
            (f"clusterrolebindings.{group}", binding)]


def _dns_service(settings: Settings) -> Obj:
    """Answered by each node's agent: the label tells service proxies to make no rules for it."""
    ports = [{"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
             {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
             {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153}]
    labels = {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS",
              "service.kubernetes.io/service-proxy-name": "pelamis-dns"}
    return {"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels,
                         "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}},
            "spec": {"type": "ClusterIP", "clusterIP": settings.dns_ip, "ports": ports}}


async def ensure(client: Any, settings: Settings) -> None:
    """Make what is absent. Raises Finding when the DNS address is in use."""
    for name, obj in wanted(settings):
        resource = named(name)
        namespace = obj["metadata"].get("namespace", "")
        try:
            # Looked for first: the address of a Service that is there is taken, by itself, and a create would say so.
            await client.get(resource, obj["metadata"]["name"], namespace)
            await _correct(client, resource, obj)
        except NotFound:
            await _make(client, resource, obj, namespace, settings)


async def _make(client: Any, resource: Resource, obj: Obj, namespace: str, settings: Settings) -> None:
    try:
        await client.create(resource, obj, namespace)
    except AlreadyExists:
        await _correct(client, resource, obj)  # another `up` was faster
    except Invalid as error:
        raise Finding(f"{obj['kind']} {obj['metadata']['name']} cannot be made", error.message,
                      f"kubectl get services -A | grep {settings.dns_ip}; delete the one that holds the address"
                      ) from error


async def _correct(client: Any, resource: Resource, obj: Obj) -> None:
    """Roles are ours to keep right; a Service belongs to whoever changed it."""
    if obj["kind"] == "ClusterRole":
        await client.patch(resource, obj["metadata"]["name"], {"rules": obj["rules"]}, kind="merge")
