"""Carries out a choice: reserves the pod's devices, binds its volumes, then the pod, and tells the world.

Owns the requests of one placement, in upstream's order: devices are written into their claims, volumes are claimed or
asked for and waited for, then the Binding is posted; what was reserved for a pod that cannot be bound is given back.
Raises what keeps it from succeeding; the caller forgets the placement and tries the pod again. Everything is re-done
safely after a restart: a claim that names its node, its devices or its volume stays what it is.

Upstream: plugins/volumebinding/binder.go (BindPodVolumes), plugins/dynamicresources and plugins/defaultbinder.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.controllers.runtime import create_named, delete_quietly, drop_finalizer
from controlplane.controllers.volumes import matching
from controlplane.machinery import objects, resources
from controlplane.machinery.errors import ApiError, Conflict, NotFound
from controlplane.scheduler import claims as devices
from controlplane.scheduler import extended
from controlplane.scheduler.decider import Errand
from controlplane.scheduler.extenders import Extenders
from controlplane.scheduler.volumes import Choice

PODS, CLAIMS, VOLUMES = (resources.named(n) for n in ("pods", "persistentvolumeclaims", "persistentvolumes"))
DEVICE_CLAIMS = resources.named("resourceclaims.resource.k8s.io")
log = logging.getLogger("scheduler")
Obj = dict[str, Any]


class Binder:
    def __init__(self, client: Client, claims: Informer, recorder: Recorder, extenders: Extenders) -> None:
        self._client, self._claims, self._recorder = client, claims, recorder
        self._extenders = extenders
        self._waiters: dict[tuple[str, str], asyncio.Event] = {}
        claims.subscribe(self._on_claim)

    def _on_claim(self, kind: str, old: Obj | None, new: Obj) -> None:
        waiter = self._waiters.get(objects.key(new))
        if waiter is not None:
            waiter.set()

    async def bind(self, pod: Obj, node: str, errand: Errand | None, seconds: float) -> None:
        """Bring the pod to the node; its volumes have so many seconds. Raises ApiError, TimeoutError."""
        grant = errand.devices if errand is not None else None
        held: list[tuple[Obj, Obj | None]] = []
        try:
            if grant is not None:
                await self._devices(grant, pod, held)
            if errand is not None and errand.volumes is not None:
                async with asyncio.timeout(seconds):
                    await self._volumes(errand.volumes, node)
            await self._bind(pod, node)
        except (ApiError, OSError, TimeoutError):
            for claim, allocation in held:
                await self.give_back(claim, allocation is not None, pod)
            raise
        where, name = objects.namespace(pod), objects.name(pod)
        self._recorder.event(pod, "Normal", "Scheduled", f"Successfully assigned {where}/{name} to {node}")

    async def _bind(self, pod: Obj, node: str) -> None:
        name, namespace = objects.name(pod), objects.namespace(pod)
        body = {"apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace, "uid": objects.uid(pod)},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        if not await self._extenders.bind(pod, node):
            await self._client.create(PODS, body, namespace=namespace, name=name, subresource="binding")

    # --- devices -----------------------------------------------------------------------------------------------

    async def _devices(self, grant: devices.Grant, pod: Obj, held: list[tuple[Obj, Obj | None]]) -> None:
        """Write what was granted, noting in `held` what is to be given back when the pod cannot be bound."""
        for claim in grant.stale:
            await self._discard(claim)
        for claim, allocation in grant.claims:
            made = claim
            if extended.ours(claim):
                made = await create_named(self._client, DEVICE_CLAIMS, extended.unwritten(claim),
                                          f"{objects.name(pod)}-extended-resources-")
            held.append((made, allocation))
            await self._reserve(made, allocation, pod)
        if grant.mappings:
            status = {"requestMappings": grant.mappings, "resourceClaimName": objects.name(held[-1][0])}
            await self._client.patch(PODS, objects.name(pod), {"metadata": {"uid": objects.uid(pod)}, "status": {
                "extendedResourceClaimStatus": status}}, objects.namespace(pod), "merge", "status")

    async def _discard(self, claim: Obj) -> None:
        """Delete a claim that was made for a pod's extended resources."""
        try:
            live = await self._client.get(DEVICE_CLAIMS, objects.name(claim), objects.namespace(claim))
            await delete_quietly(self._client, DEVICE_CLAIMS, await drop_finalizer(
                self._client, DEVICE_CLAIMS, live, devices.FINALIZER))
        except NotFound:
            pass

    async def _reserve(self, claim: Obj, allocation: Obj | None, pod: Obj) -> None:
        """Write into the claim that the pod has it, and which devices it has. Raises ApiError."""
        live = await self._client.get(DEVICE_CLAIMS, objects.name(claim), objects.namespace(claim))
        has = objects.get(live, "status.allocation", None)
        if objects.uid(live) != objects.uid(claim) or (has is None) != (allocation is not None):
            raise Conflict(f'resourceclaim "{objects.name(claim)}" has changed meanwhile')
        held = live["metadata"].get("finalizers") or []
        if allocation is not None and devices.FINALIZER not in held:
            live = await self._client.update(DEVICE_CLAIMS, {**live, "metadata": {
                **live["metadata"], "finalizers": [*held, devices.FINALIZER]}})
        if (status := devices.reserved(live, allocation, pod)) is not None:
            await self._client.update(DEVICE_CLAIMS, {**live, "status": status}, subresource="status")

    async def give_back(self, claim: Obj, whole: bool, pod: Obj) -> None:
        """Take the pod off a claim; with `whole` the devices, too, if nobody else came meanwhile."""
        try:
            if extended.ours(claim):
                return await self._discard(claim)
            live = await self._client.get(DEVICE_CLAIMS, objects.name(claim), objects.namespace(claim))
            if (status := devices.freed(live, whole, pod)) is not None:
                await self._client.update(DEVICE_CLAIMS, {**live, "status": status}, subresource="status")
        except ApiError as error:  # the next attempt finds it reserved for this very pod, which does no harm
            log.debug("giving %s back: %s", objects.name(claim), error.message)

    # --- volumes -----------------------------------------------------------------------------------------------

    async def _volumes(self, choice: Choice, node: str) -> None:
        for claim, volume in choice.static:
            if not matching.is_for(volume, claim):
                notes = {**objects.annotations(volume), matching.BOUND_BY_CONTROLLER: "yes"}
                await self._client.update(VOLUMES, {
                    **volume, "metadata": {**volume["metadata"], "annotations": notes},
                    "spec": {**volume["spec"], "claimRef": matching.reference(claim)}})
        for claim in choice.provision:
            await self._client.patch(CLAIMS, objects.name(claim), {"metadata": {"annotations": {
                matching.SELECTED_NODE: node}}}, objects.namespace(claim), kind="merge")
        for claim in (*(c for c, _ in choice.static), *choice.provision):
            await self._bound(objects.key(claim), node if claim in choice.provision else "")

    async def _bound(self, key: tuple[str, str], node: str) -> None:
        """Wait until the claim has its volume; raises when its provisioner gave up on `node`."""
        heard = self._waiters.setdefault(key, asyncio.Event())
        chosen = False
        try:
            while True:
                heard.clear()
                claim = self._claims.get(*key)
                notes = objects.annotations(claim or {"metadata": {}})
                if claim is None:
                    raise ApiError(f'persistentvolumeclaim "{key[1]}" is gone')
                if objects.get(claim, "spec.volumeName") and matching.BIND_COMPLETED in notes:
                    return
                if node and chosen and notes.get(matching.SELECTED_NODE) != node:
                    raise ApiError(f'provisioning failed for PVC "{key[1]}"')
                chosen = chosen or notes.get(matching.SELECTED_NODE) == node
                await heard.wait()
        finally:
            if self._waiters.get(key) is heard:
                del self._waiters[key]
