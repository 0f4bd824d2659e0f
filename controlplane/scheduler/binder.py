"""Carries out a choice: binds the pod's volumes, then the pod, and tells the world.

Owns the requests of one placement, in upstream's order: volumes are claimed or asked for, waited for, then the Binding
is posted. Raises what keeps it from succeeding; the caller forgets the placement and tries the pod again. Everything is
re-done safely after a restart: a claim that names its node and a volume that names its claim stay what they are.

Upstream: plugins/volumebinding/binder.go (BindPodVolumes) and plugins/defaultbinder.
"""

from __future__ import annotations

import asyncio
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.controllers import volumes as matching
from controlplane.machinery import objects, resources
from controlplane.machinery.errors import ApiError
from controlplane.scheduler.extenders import Extenders
from controlplane.scheduler.volumes import Choice

PODS, CLAIMS, VOLUMES = (resources.named(n) for n in ("pods", "persistentvolumeclaims", "persistentvolumes"))
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

    async def bind(self, pod: Obj, node: str, choice: Choice | None, seconds: float) -> None:
        """Bring the pod to the node; its volumes have so many seconds. Raises ApiError, TimeoutError."""
        if choice is not None:
            async with asyncio.timeout(seconds):
                await self._volumes(choice, node)
        name, namespace = objects.name(pod), objects.namespace(pod)
        body = {"apiVersion": "v1", "kind": "Binding",
                "metadata": {"name": name, "namespace": namespace, "uid": objects.uid(pod)},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
        if not await self._extenders.bind(pod, node):
            await self._client.create(PODS, body, namespace=namespace, name=name, subresource="binding")
        self._recorder.event(pod, "Normal", "Scheduled", f"Successfully assigned {namespace}/{name} to {node}")

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
