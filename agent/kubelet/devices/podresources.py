"""Who has which devices and CPUs: the socket `pod-resources/kubelet.sock`, for monitoring agents of this node.

Owns that socket and its answers, made when asked. Promises nothing but what the kubelet's own books say. Run by the
agent.

Upstream: pkg/kubelet/apis/podresources.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import grpc

from agent.kubelet.context import Context
from controlplane.machinery import podfacts
from cri_proto.messages import podresources as api
from cri_proto.served import Served, serve

SOCKET = "pod-resources/kubelet.sock"
Object = dict[str, Any]


class PodResources:
    """`pods()` are the pods of this node."""

    def __init__(self, context: Context, pods: Callable[[], Iterable[Object]]) -> None:
        self._context, self._pods = context, pods

    async def run(self) -> None:
        """Until cancelled."""
        service = Served(api, "PodResourcesLister", "v1.PodResourcesLister", lambda: self)
        await serve(self._context.node.root / SOCKET, service)

    # --- the service's methods

    async def List(self, request: Any, call: Any) -> Any:  # noqa: N802
        return api.ListPodResourcesResponse(pod_resources=[
            self._pod(pod) for pod in self._pods() if not podfacts.finished(pod)])

    async def Get(self, request: Any, call: Any) -> Any:  # noqa: N802
        for pod in self._pods():
            meta = pod["metadata"]
            if (meta.get("namespace"), meta["name"]) == (request.pod_namespace, request.pod_name):
                return api.GetPodResourcesResponse(pod_resources=self._pod(pod))
        await call.abort(grpc.StatusCode.UNKNOWN,
                         f"pod {request.pod_name} in namespace {request.pod_namespace} not found")
        return None

    async def GetAllocatableResources(self, request: Any, call: Any) -> Any:  # noqa: N802
        cpus, devices = self._context.cpus, self._context.devices.lent
        found = devices.book.devices if devices is not None else {}
        return api.AllocatableResourcesResponse(
            cpu_ids=sorted(cpus.assignable) if cpus is not None else (),
            devices=[self._devices(name, [id]) for name in sorted(found) for id in sorted(found[name])
                     if found[name][id].healthy])

    # --- their parts

    def _pod(self, pod: Object) -> Any:
        meta, spec = pod["metadata"], pod["spec"]
        containers = [*(c for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"),
                      *spec["containers"]]
        found: dict[str, list[Object]] = {}
        if self._context.node.claims_file(meta["uid"]).exists():
            from agent.kubelet.devices.claims import entries, read
            claims = read(self._context.node.pod_folder(meta["uid"]))
            for one in containers:
                named = {entry["name"] for entry in entries(pod, one)}
                found[one["name"]] = [claim for claim in claims if claim["own"] in named]
        return api.PodResources(name=meta["name"], namespace=meta.get("namespace", ""), containers=[
            self._container(meta["uid"], c["name"], found.get(c["name"], [])) for c in containers])

    def _container(self, uid: str, name: str, claims: list[Object]) -> Any:
        cpus, devices = self._context.cpus, self._context.devices.lent
        grants = devices.book.of(uid, name) if devices is not None else {}
        return api.ContainerResources(
            name=name, cpu_ids=sorted(cpus.own(uid, name)) if cpus is not None else (),
            devices=[self._devices(resource, grant.ids) for resource, grant in sorted(grants.items())],
            dynamic_resources=[_claimed(claim) for claim in claims])

    def _devices(self, resource: str, ids: Iterable[str]) -> Any:
        assert self._context.devices.lent is not None
        known = self._context.devices.lent.book.devices.get(resource, {})
        nodes = sorted({node for id in ids if id in known for node in known[id].nodes})
        return api.ContainerDevices(resource_name=resource, device_ids=ids, topology=api.TopologyInfo(
            nodes=[api.NUMANode(ID=node) for node in nodes]) if nodes else None)


def _claimed(claim: Object) -> Any:
    """A DynamicResource of a claim as `claims` keeps it."""
    return api.DynamicResource(claim_name=claim["name"], claim_namespace=claim["namespace"], claim_resources=[
        api.ClaimResource(driver_name=driver, pool_name=device["pool"], device_name=device["device"],
                          cdi_devices=[api.CDIDevice(name=name) for name in device["cdi"]])
        for driver, devices in sorted(claim["drivers"].items()) for device in devices])
