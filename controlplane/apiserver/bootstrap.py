"""What must exist before anyone can use the cluster.

Owns the four system namespaces and `default/kubernetes`: the Service that is this server, with its Endpoints and
EndpointSlice; what else every cluster has is listed in `clusterobjects`. Each start makes them right again, whatever
happened to them; an object that is right is not written. `wanted` is pure. Called by the server between opening the
store and accepting connections.

Upstream: k8s.io/kubernetes/pkg/controlplane/controller/{kubernetesservice,systemnamespaces}.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import orjson

from controlplane.apiserver import clusterobjects
from controlplane.apiserver.config import Options
from controlplane.apiserver.context import Context
from controlplane.apiserver.reading.lists import object_key
from controlplane.apiserver.services.allocator import Allocator
from controlplane.apiserver.services.servicefamilies import family_of
from controlplane.apiserver.writing import objectmeta
from controlplane.machinery.resources import Resource, named
from controlplane.store.log import Stale
from controlplane.store.watch import Lagged

LOG = logging.getLogger("apiserver")
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
HTTPS = 443
ATTEMPTS = 5  # of one object; nobody else writes before the server listens, so one is enough

Object = dict[str, Any]


def wanted(options: Options, address: str) -> list[tuple[Resource, Object]]:
    """The objects, in the order to make them, without identity. Pure."""
    made: list[tuple[Resource, Object]] = []
    for name in NAMESPACES:
        made.append((named("namespaces"), {
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}))
    where = {"name": "kubernetes", "namespace": "default"}
    ip = options.kubernetes_service_ip
    made.append((named("services"), {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {**where, "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family_of(ip)],
                 "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
                 "ports": [{"name": "https", "port": HTTPS, "protocol": "TCP", "targetPort": options.secure_port}]},
        "status": {"loadBalancer": {}}}))
    made.append((named("endpoints"), {
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {**where, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}],
                     "ports": [{"name": "https", "port": options.secure_port, "protocol": "TCP"}]}]}))
    made.append((named("endpointslices.discovery.k8s.io"), {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {**where, "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family_of(address), "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        "ports": [{"name": "https", "port": options.secure_port, "protocol": "TCP"}]}))
    return made


def merged(stored: Object, right: Object) -> Object:
    """The stored object made right: what `right` says, but the status, other labels and the rest stay. Pure."""
    new: Object = orjson.loads(orjson.dumps(stored))
    for field, value in right.items():
        if field == "metadata":
            new["metadata"]["labels"] = {**(new["metadata"].get("labels") or {}), **(value.get("labels") or {})}
        elif field == "spec" and right["kind"] == "Service":
            new["spec"] = {**(new.get("spec") or {}), **value}
        elif right["kind"] != "Namespace":
            new.setdefault(field, value) if field == "status" else new.update({field: value})
    if not new["metadata"]["labels"]:
        del new["metadata"]["labels"]
    return new


def _everything(context: Context, address: str) -> list[tuple[Resource, Object]]:
    return [*wanted(context.options, address), *clusterobjects.wanted(context.options, context.clock.timestamp())]


async def keep(context: Context, address: str) -> None:
    """Make right again what someone deletes or changes while the server runs. Ends by cancellation."""
    kept = [(resource, right["metadata"]) for resource, right in _everything(context, address)]

    async def follow(resource: Resource, key: str) -> None:
        while True:
            with context.cache.watch(key, None) as watch:
                try:
                    await watch.take()
                except Lagged:
                    LOG.warning("%s changes faster than it can be made right", key)
            await _ensure_all(context, address)

    async with asyncio.TaskGroup() as group:
        for resource, metadata in kept:
            group.create_task(follow(resource, object_key(resource, metadata.get("namespace", ""), metadata["name"])))


async def ensure(context: Context, allocator: Allocator, address: str) -> None:
    """Make everything right. Raises Finding when the store cannot be written."""
    await _ensure_all(context, address)
    problems = allocator.restore(item.obj for item in context.cache.list("services/"))
    for problem in problems:
        LOG.warning("%s", problem)


async def _ensure_all(context: Context, address: str) -> None:
    for resource, right in _everything(context, address):
        metadata = right["metadata"]
        key = object_key(resource, metadata.get("namespace", ""), metadata["name"])
        for _ in range(ATTEMPTS):
            item = context.cache.get(key)
            if item is None:
                if right["kind"] in ("EndpointSlice", "PriorityClass"):
                    metadata["generation"] = 1
                objectmeta.found(resource, right, context.clock.uid(), context.clock.timestamp())
            obj = right if item is None else merged(item.obj, right)
            try:
                await context.cache.write(key, obj, 0 if item is None else item.revision)
                break
            except Stale:
                continue
        if item is None:
            LOG.info("made %s %s", right["kind"], metadata["name"])
