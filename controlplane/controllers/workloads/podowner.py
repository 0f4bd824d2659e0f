"""What every controller of pods does alike: hear of its pods, claim them, create and delete them, and say so.

Owns the way from a pod's event to its owner's key, adoption and release, and the events users read. Promises that a
pod whose creation was not answered is found again and never made twice, and that nothing is adopted for an owner that
is no more. Never decides how many pods there shall be. Base of the ReplicaSet, DaemonSet, Job and StatefulSet
controllers.

Upstream: pkg/controller (PodControl, PodControllerRefManager).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from controlplane.client.informer import Informer
from controlplane.controllers.runtime import (
    PODS,
    Context,
    Controller,
    by_controller,
    by_namespace,
    create_named,
    in_batches,
    picked,
)
from controlplane.controllers.workloads import adoption
from controlplane.machinery import objects, selectors
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound
from controlplane.machinery.resources import Resource

Obj = dict[str, Any]
Key = tuple[str, str]


class PodOwner(Controller):
    """Keys are (namespace, name) of an object of `resource`. Subclasses set `name` before they call `__init__`."""

    def __init__(self, context: Context, resource: Resource, *more: Informer) -> None:
        self.resource = resource
        self.owners = context.informer(resource, namespace=by_namespace)
        self.pods = context.informer(PODS, controller=by_controller)
        super().__init__(context, self.owners, self.pods, *more)
        self.owners.subscribe(self.owner_changed)
        self.pods.subscribe(self.pod_changed)

    def owner_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self.pending.forget(objects.key(new))
        else:
            self.queue.add(objects.key(new))

    def pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for pod in (old, new) if old is not None else (new,):
            owner = objects.controller_of(pod)
            if owner is not None:
                if (owner.get("apiVersion"), owner.get("kind")) == (self.resource.api_version, self.resource.kind):
                    self.queue.add((objects.namespace(pod), owner["name"]))
            elif kind != "DELETED" and objects.labels(pod):
                self._offer(pod)

    def _offer(self, pod: Obj) -> None:
        """Tell whoever may adopt a pod of nobody."""
        labels = objects.labels(pod)
        for owner in picked(self.owners.by("namespace", objects.namespace(pod)),
                            lambda one: bool(self.selector(one).matches(labels))):
            self.queue.add(objects.key(owner))

    def selector(self, owner: Obj) -> Any:
        return selectors.from_label_selector(objects.get(owner, "spec.selector") or {})

    # --- whose pods --------------------------------------------------------------------------------------------

    def adoption(self, owner: Obj, pod: Obj) -> Obj:
        return adoption.adoption(owner, pod)

    def release(self, owner: Obj, pod: Obj) -> Obj:
        return adoption.release(owner, pod)

    def may_own(self, owner: Obj, pod: Obj) -> bool:
        """Whether a pod that matches the selector is one of the owner's kind at all."""
        return True

    async def claim(self, key: Key, owner: Obj) -> list[Obj]:
        """The owner's pods, after adopting and releasing."""
        candidates = [*self.pods.by("controller", objects.uid(owner)),
                      *self.pods.by("controller", f"orphan/{key[0]}")]
        claim = adoption.claim(owner, self.selector(owner), candidates)
        mine = list(claim.mine)
        adopt = [pod for pod in claim.adopt if self.may_own(owner, pod)]
        if adopt:  # only if the owner still is what we think it is: its successor may have the name by now
            live = await self.client.get(self.resource, key[1], key[0])
            if objects.uid(live) != objects.uid(owner) or objects.deleting(live):
                return mine
        for pod in adopt:
            mine.append(await self.patch_pod(key, pod, self.adoption(owner, pod)) or pod)
        for pod in claim.release:
            await self.patch_pod(key, pod, self.release(owner, pod))
        return mine

    async def patch_pod(self, key: Key, pod: Obj, patch: Obj) -> Obj | None:
        """The pod after the strategic patch; None when it is gone."""
        try:
            changed = await self.client.patch(PODS, objects.name(pod), patch, key[0])
        except NotFound:
            return None
        self.pending.wrote(key, changed)
        return changed

    # --- creating and deleting ---------------------------------------------------------------------------------

    async def create_pods(self, key: Key, owner: Obj, pods: list[Obj], prefix: Callable[[Obj], str]) -> ApiError | None:
        """Create them under generated names, gently; the error that stopped it."""
        return await self._each(pods, lambda pod: self._create(
            key, owner, create_named(self.client, PODS, pod, prefix(pod))))

    async def create_pod(self, key: Key, owner: Obj, pod: Obj) -> None:
        """Create one pod under its own name. AlreadyExists only if the name is another's."""
        await self._create(key, owner, self._create_exact(owner, pod))

    async def _create_exact(self, owner: Obj, pod: Obj) -> Obj:
        try:
            return await self.client.create(PODS, pod)
        except AlreadyExists:  # a repeated request finds what the first one made
            existing = await self.client.get(PODS, objects.name(pod), objects.namespace(pod))
            if (objects.controller_of(existing) or {}).get("uid") == objects.uid(owner):
                return existing
            raise

    async def _create(self, key: Key, owner: Obj, making: Awaitable[Obj]) -> None:
        try:
            pod = await making
        except ApiError as error:
            self.tell_create_failed(owner, error)
            raise
        self.pending.wrote(key, pod)
        self.tell_created(owner, pod)

    async def delete_pods(self, key: Key, owner: Obj, pods: list[Obj]) -> ApiError | None:
        """Delete them, gently; the error that stopped it."""
        return await self._each(pods, lambda pod: self.delete_pod(key, owner, pod))

    async def delete_pod(self, key: Key, owner: Obj, pod: Obj) -> None:
        try:
            await self.client.delete(PODS, objects.name(pod), key[0], uid=objects.uid(pod))
        except NotFound:
            pass
        except ApiError as error:
            self.recorder.event(owner, "Warning", "FailedDelete", f"Error deleting: {error.message}")
            raise
        self.pending.deleted(key, pod)
        self.tell_deleted(owner, pod)

    @staticmethod
    async def _each(pods: list[Obj], act: Callable[[Obj], Awaitable[None]]) -> ApiError | None:
        return await in_batches(len(pods), lambda number: act(pods[number]))

    # --- what users read ---------------------------------------------------------------------------------------

    def tell_created(self, owner: Obj, pod: Obj) -> None:
        self.recorder.event(owner, "Normal", "SuccessfulCreate", f"Created pod: {objects.name(pod)}")

    def tell_create_failed(self, owner: Obj, error: ApiError) -> None:
        self.recorder.event(owner, "Warning", "FailedCreate", f"Error creating: {error.message}")

    def tell_deleted(self, owner: Obj, pod: Obj) -> None:
        self.recorder.event(owner, "Normal", "SuccessfulDelete", f"Deleted pod: {objects.name(pod)}")
