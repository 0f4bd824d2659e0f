"""CustomResourceDefinitions at work: their names accepted, their kinds served, their objects removed in the end.

Owns the custom part of the registry and the status of every definition. Promises that a restarted server serves every
established kind before it answers its first request; that a changed definition is in effect within the same turn in
which its write is seen, whereupon clients watching the kind are asked to reconnect; and that a definition's finalizer
goes only after the last of its objects. Names are judged in the order of acceptance: who came first keeps them. It
follows the store itself and never polls. Called by the server.

Upstream: k8s.io/apiextensions-apiserver/pkg/controller/{status,establish,finalizer,openapi}.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from controlplane.apiserver.crd import served
from controlplane.apiserver.crd.conversion import Converter
from controlplane.apiserver.webhooks.caller import Caller
from controlplane.machinery import customdefinitions as facts
from controlplane.machinery import objects
from controlplane.machinery.errors import ApiError, Finding
from controlplane.machinery.resources import Resource, named
from controlplane.store.cache import key_of, prefix_of
from controlplane.store.item import Item
from controlplane.store.log import Stale
from controlplane.store.watch import Lagged

if TYPE_CHECKING:
    from controlplane.apiserver.context import Context

LOG = logging.getLogger("apiserver")
RETRY_SECONDS = 5.0  # after the store refused a status, which it does when the disk is full
DEFINITIONS = named("customresourcedefinitions.apiextensions.k8s.io")
Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Kind:
    """What of one definition is served; `mark` changes when that must be made anew."""

    mark: tuple[Any, ...]
    entries: tuple[Resource, ...]
    prefix: str


class Definitions:
    """`load()` once at start, then `run()`. `close_watches(prefix)` ends the streams of a kind that changed."""

    def __init__(self, context: Context, close_watches: Callable[[str], None]) -> None:
        self._context = context
        self._close_watches = close_watches
        self._kinds: dict[str, _Kind] = {}
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._caller = Caller(context)
        self._since = 0

    def load(self) -> None:
        """Serve what is established already. Reads only."""
        self._since = self._context.cache.revision
        for item in self._items():
            if objects.holds(item.obj, "Established"):
                try:
                    self._kinds[item.obj["metadata"]["name"]] = self._made(item, item.obj)
                except (KeyError, TypeError) as error:
                    LOG.error("cannot serve %s: %s: %s", item.key, type(error).__name__, error)
        self._register()

    async def run(self) -> None:
        """Follow the definitions until cancelled."""
        try:
            await self._follow()
        finally:
            await self._caller.close()

    async def _follow(self) -> None:
        async with asyncio.TaskGroup() as group:
            for item in self._items():
                await self._settled(group, item.obj["metadata"]["name"])
            while True:
                with self._context.cache.watch(prefix_of(DEFINITIONS.name), self._since) as watch:
                    try:
                        while True:
                            batch = await watch.take()
                            changed = dict.fromkeys(e.item.obj["metadata"]["name"] for e in batch)
                            for name in [*changed, *self._waiting(changed)]:
                                await self._settled(group, name)
                            self._since = batch[-1].revision
                    except Lagged:
                        self._since = self._context.cache.revision
                        for item in self._items():
                            await self._settled(group, item.obj["metadata"]["name"])

    def _items(self) -> list[Item]:
        return self._context.cache.list(prefix_of(DEFINITIONS.name))

    def _waiting(self, changed: Collection[str]) -> list[str]:
        """Definitions that wait for names which the changed ones may have let go: those of the same groups."""
        groups = {name.partition(".")[2] for name in changed}
        return [item.obj["metadata"]["name"] for item in self._items() if item.obj["spec"]["group"] in groups
                and not objects.holds(item.obj, "NamesAccepted") and item.obj["metadata"]["name"] not in changed]

    # --- one definition ------------------------------------------------------------------------------------------

    async def _settled(self, group: asyncio.TaskGroup, name: str) -> None:
        """Bring what is served and what the status says in line with a definition, however long the store refuses."""
        while True:
            try:
                await self._settle(group, name)
                return
            except Stale:
                continue  # somebody else wrote it: look again
            except (ApiError, KeyError, TypeError, ValueError) as error:  # one bad definition must not end all others
                LOG.error("cannot serve %s: %s: %s", name, type(error).__name__, error)
                return
            except Finding as finding:
                LOG.error("the status of %s cannot be stored: %s", name, finding.fact)
                await self._context.clock.sleep(RETRY_SECONDS)

    async def _settle(self, group: asyncio.TaskGroup, name: str) -> None:
        item = self._context.cache.get(key_of(DEFINITIONS.name, "", name))
        if item is None:
            self._drop(name)
            return
        obj = objects.deep_copy(item.obj)
        self._judge(obj)
        if objects.holds(obj, "Established"):
            self._serve(name, item, obj)
        if obj != item.obj:
            item = await self._context.cache.write(item.key, obj, item.revision)
        if objects.deleting(obj) and facts.CLEANUP in (obj["metadata"].get("finalizers") or ()) \
                and name not in self._ending:
            self._ending[name] = group.create_task(self._end(name), name=f"removal of {name}")

    def _judge(self, obj: Object) -> None:
        """Set acceptedNames and the conditions, in place."""
        spec, status = obj["spec"], obj.setdefault("status", {})
        others = facts.taken((i.obj.get("status") or {}).get("acceptedNames") or {} for i in self._items()
                             if i.obj["spec"]["group"] == spec["group"]
                             and i.obj["metadata"]["name"] != obj["metadata"]["name"])
        accepted, names = facts.accept(spec["names"], status.get("acceptedNames") or {}, others)
        status["acceptedNames"] = accepted
        now = self._context.clock.timestamp()
        conditions: list[Any] = status.setdefault("conditions", [])
        objects.set_condition(conditions, "NamesAccepted", *names, now)
        if (approval := facts.approval(obj)) is not None:
            objects.set_condition(conditions, "KubernetesAPIApprovalPolicyConformant", *approval, now)
        established = facts.established(obj, names[0] == "True")
        if established is not None:
            objects.set_condition(conditions, "Established", *established, now)
        if objects.deleting(obj) and facts.CLEANUP in (obj["metadata"].get("finalizers") or ()):
            objects.set_condition(conditions, "Terminating", "True", "InstanceDeletionInProgress",
                                  "CustomResource deletion is in progress", now)

    # --- what is served ------------------------------------------------------------------------------------------

    def _made(self, item: Item, obj: Object) -> _Kind:
        converter = Converter(self._context, self._caller, obj)
        entries = []
        for version in obj["spec"]["versions"]:
            if version.get("served"):
                try:
                    entries.append(served.entry(obj, item, version, converter))
                except (ValueError, KeyError, ApiError) as error:
                    LOG.error("cannot serve %s of %s: %s", version.get("name"), obj["metadata"]["name"], error)
        return _Kind(_mark(obj), tuple(entries), prefix_of(obj["metadata"]["name"]))

    def _serve(self, name: str, item: Item, obj: Object) -> None:
        known = self._kinds.get(name)
        if known is not None and known.mark == _mark(obj):
            return
        self._kinds[name] = self._made(item, obj)
        self._register()
        if known is not None and known.mark[:-1] != _mark(obj)[:-1]:
            self._close_watches(known.prefix)

    def _drop(self, name: str) -> None:
        known = self._kinds.pop(name, None)
        if known is not None:
            self._register()
            self._close_watches(known.prefix)

    def _register(self) -> None:
        entries = [entry for kind in self._kinds.values() for entry in kind.entries]
        entries.sort(key=lambda e: (e.group, facts.version_rank(e.version), e.plural))
        self._context.registry.customize(entries)

    # --- the end of a definition ---------------------------------------------------------------------------------

    async def _end(self, name: str) -> None:
        """Remove every object of a kind, then let its definition go."""
        try:
            cache = self._context.cache
            kind = self._kinds.get(name)
            prefix = prefix_of(name)
            while cache.count(prefix):
                with cache.watch(prefix, None) as watch:
                    for item in cache.list(prefix):
                        await self._remove(kind, item)
                    if cache.count(prefix):  # what finalizers hold goes with an event
                        with contextlib.suppress(Lagged):
                            await watch.take()
            await self._released(name)
        finally:
            self._ending.pop(name, None)

    async def _remove(self, kind: _Kind | None, item: Item) -> None:
        from controlplane.apiserver.writing.deletes import Options, decide
        resource = kind.entries[0] if kind is not None and kind.entries else DEFINITIONS
        left = decide(resource, item.obj, Options(), False, self._context.clock.now())
        if left is not None and item.obj["metadata"].get("deletionTimestamp"):
            return
        try:
            await self._context.cache.write(item.key, left, item.revision)
        except Stale:
            pass  # it was written meanwhile: the next round sees it
        except Finding as finding:
            LOG.error("an object of a kind being removed cannot be deleted: %s", finding.fact)
            await self._context.clock.sleep(RETRY_SECONDS)

    async def _released(self, name: str) -> None:
        """Take the finalizer off; the definition goes with its last one."""
        cache = self._context.cache
        while (item := cache.get(key_of(DEFINITIONS.name, "", name))) is not None:
            obj = objects.deep_copy(item.obj)
            finalizers = [f for f in obj["metadata"].get("finalizers") or () if f != facts.CLEANUP]
            obj["metadata"]["finalizers"] = finalizers
            objects.set_condition(obj.setdefault("status", {}).setdefault("conditions", []), "Terminating", "False",
                                  "InstanceDeletionCompleted", "removed all instances",
                                  self._context.clock.timestamp())
            try:
                await cache.write(item.key, obj if finalizers else None, item.revision)
                return
            except Stale:
                continue
            except Finding as finding:
                LOG.error("the finalizer of %s cannot be removed: %s", name, finding.fact)
                await self._context.clock.sleep(RETRY_SECONDS)


def _mark(obj: Object) -> tuple[Any, ...]:
    """What decides how a definition is served; the end has come in the last place, for objects are still watched."""
    accepted = (obj.get("status") or {}).get("acceptedNames")
    made = hashlib.sha256(orjson.dumps([obj["spec"], accepted], option=orjson.OPT_SORT_KEYS)).digest()
    return obj["metadata"]["uid"], made, objects.deleting(obj)
