"""Where a Service is reached by this server: at a ready endpoint, without DNS and without the service proxy.

Owns the choice for whoever is called by the server itself: webhooks, aggregated API servers and what clients reach by
the proxy subresource. A Service without endpoints of its own is reached at its cluster IP, one of type ExternalName
under its name. Reads the cache only.

Upstream: k8s.io/kube-aggregator/pkg/apiserver/resolvers.go, k8s.io/apiserver/pkg/util/proxy.
"""

from __future__ import annotations

from typing import Any

from controlplane.store.cache import Cache, key_of, prefix_of

SERVICE_LABEL = "kubernetes.io/service-name"
SLICES = "endpointslices.discovery.k8s.io"
Object = dict[str, Any]


class NowhereToCall(Exception):  # noqa: N818 - what it means is the caller's to say
    """The Service has nothing to be called at; the text says why."""


def slices_of(cache: Cache, namespace: str, name: str) -> list[Object]:
    """The EndpointSlices of a Service."""
    return [item.obj for item in cache.list(prefix_of(SLICES, namespace)) if item.labels.get(SERVICE_LABEL) == name]


def endpoints(slices: list[Object], port: str) -> list[tuple[str, int]]:
    """Addresses and port numbers of the ready endpoints that serve the named port. Pure."""
    found = []
    for piece in slices:
        number = next((p.get("port") for p in piece.get("ports") or () if (p.get("name") or "") == port), None)
        if number:
            found += [(one["addresses"][0], int(number)) for one in piece.get("endpoints") or ()
                      if (one.get("conditions") or {}).get("ready", True) is not False and one.get("addresses")]
    return found


def ready(cache: Cache, namespace: str, name: str, port: str) -> list[tuple[str, int]]:
    """Where the named port of a Service is served now. Its Endpoints are asked where its slices know of none: the two
    are written one after the other, and whoever has seen either may call."""
    if found := endpoints(slices_of(cache, namespace, name), port):
        return found
    item = cache.get(key_of("endpoints", namespace, name))
    subsets = (item.obj.get("subsets") or []) if item is not None else []
    return endpoints([{"ports": subset.get("ports"), "endpoints": [
        {"addresses": [one["ip"]]} for one in subset.get("addresses") or ()]} for subset in subsets], port)


def locate(cache: Cache, namespace: str, name: str, port: int) -> list[tuple[str, int]]:
    """Hosts and ports a Service's port can be called at, at least one. Raises NowhereToCall."""
    item = cache.get(key_of("services", namespace, name))
    if item is None:
        raise NowhereToCall(f'service "{name}" not found')
    spec = item.obj.get("spec") or {}
    if spec.get("type") == "ExternalName":
        return [(spec.get("externalName") or "", port)]
    declared = next((p for p in spec.get("ports") or [] if p.get("port") == port), None)
    if declared is None:
        raise NowhereToCall(f'no service port {port} found for service "{name}"')
    if found := ready(cache, namespace, name, declared.get("name") or ""):
        return found
    if slices_of(cache, namespace, name) or not spec.get("clusterIP") or spec["clusterIP"] == "None":
        raise NowhereToCall(f'no endpoints available for service "{name}"')
    return [(spec["clusterIP"], port)]
