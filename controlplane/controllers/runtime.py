"""What every controller shares: informers, a keyed queue, and the memory of its own writes.

Owns the life of a controller: wait for the informers, then handle keys until cancelled. Promises that no decision is
made on a memory older than the controller's own last write for that key, which is what would make duplicates. Never
decides anything; each controller's plan does. Called by the controllers and by `__main__`.

Upstream: k8s.io/kubernetes/pkg/controller (ControllerExpectations, PodControl).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from controlplane.client.events import Recorder
from controlplane.client.informer import Informer, Informers
from controlplane.client.queue import WORKERS, WorkQueue
from controlplane.client.rest import Client, Unreachable
from controlplane.machinery import objects
from controlplane.machinery.clock import Clock
from controlplane.machinery.errors import AlreadyExists, ApiError, NotFound
from controlplane.machinery.resources import Resource, named

log = logging.getLogger(__name__)

STALE_SECONDS = 5.0  # how soon to look again when the event of our own write does not come
NAME_TRIES = 8  # names to try for one child: 27^5 are possible, so a second collision is a fault elsewhere
AWAY_SECONDS = 2.0  # between tries of one creation while the server does not answer
BATCH_LIMIT = 16  # requests of one key under way at once: each costs both sides a TLS connection
SLOW_START = 1  # first batch of creations; doubled while all succeed, so that a quota is hit gently

_INSIDES = ("command", "args", "env", "envFrom", "volumeMounts", "livenessProbe", "readinessProbe", "startupProbe",
            "lifecycle", "terminationMessagePath", "terminationMessagePolicy", "securityContext", "imagePullPolicy")

Obj = dict[str, Any]
PODS, NODES, SERVICES = named("pods"), named("nodes"), named("services")


@dataclass(frozen=True, slots=True)
class Context:
    """What a controller is given."""

    client: Client
    informers: Informers
    clock: Clock

    def informer(self, resource: Resource, **indexes: Callable[[Obj], list[str]]) -> Informer:
        return self.informers.of(resource, indexes=indexes, keep=keep_for(resource))


def keep_for(resource: Resource) -> Callable[[Obj], None] | None:
    """What to forget of objects whose bulk no controller reads: shared informers must agree on it."""
    if resource == PODS:
        return _forget_insides
    return _forget_data if resource.name in ("configmaps", "secrets") else None


def _forget_insides(pod: Obj) -> None:
    """Only a pod's node reads how its containers start; a thousand pods would otherwise cost tens of megabytes."""
    spec = pod["spec"]
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        for field in _INSIDES:
            container.pop(field, None)
    if "volumes" in spec:
        spec["volumes"] = [volume for volume in spec["volumes"] if "projected" not in volume]
    status = pod.get("status") or {}
    for one in (*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())):
        for field in ("lastState", "volumeMounts", "imageID", "containerID", "user", "resources"):
            one.pop(field, None)
        if (state := one.pop("state", None)) and (end := state.get("terminated")):  # what Jobs are judged by
            one["state"] = {"terminated": {field: end[field] for field in ("exitCode", "finishedAt") if field in end}}


def _forget_data(obj: Obj) -> None:
    obj.pop("binaryData", None)
    if obj["metadata"]["name"] != "kube-root-ca.crt":
        obj.pop("data", None)


class Controller:
    """A named queue with a handler. Subclasses set `name`, subscribe in `__init__` and define `reconcile`."""

    name = ""
    workers = WORKERS

    def __init__(self, context: Context, *informers: Informer) -> None:
        self.client, self.clock, self.context = context.client, context.clock, context
        self.queue = WorkQueue(context.clock, self.name)
        self.recorder = Recorder(context.client, self.name)
        self.pending = Pending()
        self.informers = informers

    async def reconcile(self, key: Any) -> float | None:
        """Bring what `key` names to its desired state; seconds after which to look again, or None."""
        raise ApiError(f"{self.name} has no handler")

    async def run(self) -> None:
        """Handle keys until cancelled, once the informers are filled."""
        for informer in self.informers:
            await informer.synced()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.recorder.run(), name=f"{self.name} events")
            group.create_task(self.queue.run(self.reconcile, self.workers), name=self.name)


class Pending:
    """Writes the informer has not shown yet, by key: the highest revision written, and the uids deleted."""

    def __init__(self) -> None:
        self._floor: dict[Hashable, int] = {}
        self._deleted: dict[Hashable, dict[str, tuple[str, str]]] = {}

    def wrote(self, key: Hashable, obj: Obj) -> None:
        revision = objects.revision(obj)
        if revision:
            self._floor[key] = max(self._floor.get(key, 0), int(revision))

    def deleted(self, key: Hashable, obj: Obj) -> None:
        self._deleted.setdefault(key, {})[objects.uid(obj)] = (objects.namespace(obj), objects.name(obj))

    def settled(self, key: Hashable, informer: Informer) -> bool:
        """Whether the informer has caught up with everything written for `key`."""
        if informer.revision < self._floor.get(key, 0):
            return False
        deleted = self._deleted.get(key, {})
        for uid, where in list(deleted.items()):
            cached = informer.get(*where)
            if cached is None or objects.uid(cached) != uid or objects.deleting(cached):
                del deleted[uid]
        if deleted:
            return False
        self.forget(key)
        return True

    def forget(self, key: Hashable) -> None:
        self._floor.pop(key, None)
        self._deleted.pop(key, None)


async def create_named(client: Client, resource: Resource, obj: Obj, prefix: str) -> Obj:
    """Create `obj` under `prefix` and a random tail, exactly once even when answers are lost: the name is chosen here,
    so that a repeated request finds what the first one made."""
    owner = objects.controller_of(obj) or {}
    prefix = prefix[:58]
    for _ in range(NAME_TRIES):
        name = prefix + client.clock.suffix()
        meta = {**obj["metadata"], "name": name, "generateName": prefix}
        try:
            return await _create_once(client, resource, {**obj, "metadata": meta})
        except AlreadyExists:
            existing = await client.get(resource, name, objects.namespace(obj))
            if (objects.controller_of(existing) or {}).get("uid") == owner.get("uid"):
                return existing
    raise ApiError(f"no free name for {prefix}")


async def _create_once(client: Client, resource: Resource, obj: Obj) -> Obj:
    while True:
        try:
            return await client.create(resource, obj)
        except Unreachable:
            await client.clock.sleep(client.clock.jitter(AWAY_SECONDS))


async def in_batches(count: int, make: Callable[[int], Any]) -> ApiError | None:
    """Await `make(0) … make(count-1)` in growing batches; stops after the first batch with an error and returns it."""
    done, size = 0, SLOW_START
    while done < count:
        batch = range(done, min(count, done + size))
        results = await asyncio.gather(*(make(number) for number in batch), return_exceptions=True)
        for result in results:
            if isinstance(result, ApiError):
                return result
            if isinstance(result, BaseException):
                raise result
        done += len(batch)
        size = min(2 * size, BATCH_LIMIT)
    return None


async def set_status(client: Client, resource: Resource, obj: Obj, status: Obj) -> Obj:
    """PUT the status when it differs from the object's; Conflict when somebody changed the object meanwhile."""
    if (obj.get("status") or {}) == status:
        return obj
    return await client.update(resource, {**obj, "status": status}, subresource="status")


async def count_collision(client: Client, resource: Resource, obj: Obj) -> None:
    """Note that the name made for a template is another's: the next try makes another one."""
    count = objects.get(obj, "status.collisionCount", 0) + 1
    await set_status(client, resource, obj, {**(obj.get("status") or {}), "collisionCount": count})


async def drop_finalizer(client: Client, resource: Resource, obj: Obj, finalizer: str) -> Obj:
    """The object without the finalizer; Conflict when somebody changed it meanwhile."""
    held = obj["metadata"].get("finalizers") or []
    if finalizer not in held:
        return obj
    patch = {"metadata": {"uid": objects.uid(obj), "resourceVersion": objects.revision(obj),
                          "finalizers": [one for one in held if one != finalizer] or None}}
    return await client.patch(resource, objects.name(obj), patch, objects.namespace(obj), "merge")


async def delete_quietly(client: Client, resource: Resource, obj: Obj, **options: Any) -> bool:
    """Delete exactly this object; False when it is already gone or another has its name."""
    try:
        await client.delete(resource, objects.name(obj), objects.namespace(obj), uid=objects.uid(obj), **options)
    except NotFound:
        return False
    return True


def picked(candidates: Iterable[Obj], test: Callable[[Obj], bool]) -> list[Obj]:
    """Those that pass the test. One that cannot be read is passed over: its own key will say what is wrong with it."""
    found = []
    for one in candidates:
        try:
            if test(one):
                found.append(one)
        except Exception as error:
            log.debug("cannot judge %s/%s: %s", *objects.key(one), error)
    return found


def by_namespace(obj: Obj) -> list[str]:
    return [objects.namespace(obj)]


def by_controller(obj: Obj) -> list[str]:
    """Index: the uid of the controlling owner, or `orphan/<namespace>`."""
    owner = objects.controller_of(obj)
    return [owner["uid"] if owner else f"orphan/{objects.namespace(obj)}"]
