"""Which kinds the server serves beside the built-in ones, as resources a client can use.

Owns the translation of CustomResourceDefinitions into one `Resource` each, of the version the server prefers. Follows
the definitions by an informer and keeps of each only what that takes, so a change is known within moments and nothing
is asked for in between. A subscriber hears of every kind once when it comes and once when it goes; one whose preferred
version changes goes and comes. Called by the controllers that are given references to objects of any kind; those that
must see all objects ask `aggregated` for the kinds of other servers besides.

Upstream: the discovery client and its RESTMapper, k8s.io/client-go/{discovery,restmapper}.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.client.informer import Informers
from controlplane.machinery import objects
from controlplane.machinery.customdefinitions import version_rank
from controlplane.machinery.resources import ALL_VERBS, BUILTIN, Resource, named

DEFINITIONS = named("customresourcedefinitions.apiextensions.k8s.io")
Obj = dict[str, Any]
Subscriber = Callable[[Resource, bool], None]


def essentials(obj: Obj) -> None:
    """Forget a definition's schemas, which are most of it."""
    obj["metadata"].pop("annotations", None)
    for version in obj["spec"].get("versions") or ():
        for field in [f for f in version if f not in ("name", "served", "storage")]:
            del version[field]


def resource_of(definition: Obj) -> Resource | None:
    """The resource of an established definition in its preferred version; None while it is not served."""
    if not objects.holds(definition, "Established"):
        return None
    spec = definition["spec"]
    versions = sorted((v["name"] for v in spec["versions"] if v.get("served")), key=version_rank)
    if not versions:
        return None
    names = (definition.get("status") or {}).get("acceptedNames") or spec["names"]
    verbs = tuple(v for v in ALL_VERBS if v != "create") if objects.deleting(definition) else ALL_VERBS
    return Resource(spec["group"], versions[0], names["plural"], names["kind"],
                    namespaced=spec["scope"] == "Namespaced", verbs=verbs, custom=True,
                    list_kind=names.get("listKind") or "")


class Kinds:
    """The custom kinds; complete once `synced()`."""

    def __init__(self, informers: Informers) -> None:
        self.informer = informers.of(DEFINITIONS, keep=essentials)
        self._subscribers: list[Subscriber] = []
        self._served: dict[str, Resource] = {}
        self.informer.subscribe(self._changed)

    def all(self) -> list[Resource]:
        return list(self._served.values())

    def referred(self, reference: Obj) -> Resource | None:
        """The resource of an object reference, built in or custom, whichever version it names."""
        group, kind = reference.get("apiVersion", "").rpartition("/")[0], reference.get("kind")
        return next((one for one in (*BUILTIN, *self.all()) if (one.group, one.kind) == (group, kind)), None)

    async def synced(self) -> None:
        """Wait until the kinds that exist are known."""
        await self.informer.synced()

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call `subscriber(resource, served)` as kinds come and go; those that exist are told now."""
        self._subscribers.append(subscriber)
        for resource in self.all():
            subscriber(resource, True)

    def _changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        name = new["metadata"]["name"]
        was, now = self._served.get(name), None if kind == "DELETED" else resource_of(new)
        if was is not None and now is not None and (was.version, was.kind) == (now.version, now.kind):
            return
        if was is not None:
            del self._served[name]
            self._tell(was, False)
        if now is not None:
            self._served[name] = now
            self._tell(now, True)

    def _tell(self, resource: Resource, served: bool) -> None:
        for subscriber in self._subscribers:
            subscriber(resource, served)
