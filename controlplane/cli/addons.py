"""What belongs to every cluster and is an object like any other: the DNS Service.

Owns it at `up`: an absent one is made, but the DNS Service of somebody who replaced it stays theirs. What the node's
network may read is a role that every cluster begins with (`machinery.rbacdefaults`).

Called by `up` once the node is ready.
"""

from __future__ import annotations

from typing import Any

from controlplane.cli.settings import Settings
from controlplane.machinery.errors import AlreadyExists, Finding, Invalid, NotFound
from controlplane.machinery.resources import named

Obj = dict[str, Any]


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
    services, wanted = named("services"), _dns_service(settings)
    name, namespace = wanted["metadata"]["name"], wanted["metadata"]["namespace"]
    try:
        # Looked for first: the address of a Service that is there is taken, by itself, and a create would say so.
        await client.get(services, name, namespace)
    except NotFound:
        try:
            await client.create(services, wanted, namespace)
        except AlreadyExists:
            pass  # another `up` was faster
        except Invalid as error:
            raise Finding(f"Service {name} cannot be made", error.message,
                          f"kubectl get services -A | grep {settings.dns_ip}; delete the one that holds the address"
                          ) from error
