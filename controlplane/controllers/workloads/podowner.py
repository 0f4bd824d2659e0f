"""What every controller of pods does alike: hear of its pods, claim them, create and delete them, and say so.

Owns the creating and deleting, and the events users read; whose a pod is `family` finds out. Promises that a pod whose
creation was not answered is found again and never made twice. Never decides how many pods there shall be. Base of the
ReplicaSet, DaemonSet, Job and StatefulSet controllers.

Upstream: pkg/controller (PodControl).
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
)
from controlplane.controllers.workloads import adoption
from controlplane.controllers.workloads.family import Family
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
        self.family = Family(self.client, self.pending, self.owners, self.pods, self.selector)
        self.owners.subscribe(self.owner_changed)
        self.pods.subscribe(self.pod_changed)

    def owner_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        if kind == "DELETED":
            self.pending.forget(objects.key(new))
        else:
            self.queue.add(objects.key(new))

    def pod_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        for key in self.family.concerned(kind, old, new):
            self.queue.add(key)

    def selector(self, owner: Obj) -> Any:
        return selectors.from_label_selector(objects.get(owner, "spec.selector") or {})

    # --- whose pods --------------------------------------------------------------------------------------------

    def may_own(self, owner: Obj, pod: Obj) -> bool:
        """Whether a pod that matches the selector is one of the owner's kind at all."""
        return True

    def adopt(self, owner: Obj, pod: Obj) -> Obj:
        return adoption.adopt(owner, pod)

    def release(self, owner: Obj, pod: Obj) -> Obj:
        return adoption.release(owner, pod)

    async def claim(self, key: Key, owner: Obj) -> list[Obj]:
        """The owner's pods, after adopting and releasing."""
        return await self.family.claim(key, owner, self.may_own, self.adopt, self.release)

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
