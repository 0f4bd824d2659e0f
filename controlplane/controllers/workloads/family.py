"""The dependents that owners claim by their selectors: pods of a ReplicaSet, ReplicaSets of a Deployment, revisions.

Runs `adoption`'s verdicts. Promises that nothing is adopted for an owner that is no more, by the server's own word: its
successor may have the name by now. Called by the controllers of workloads, each with the informers of the two kinds.

Upstream: pkg/controller (PodControllerRefManager and its likes).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from controlplane.client.informer import Informer
from controlplane.client.rest import Client
from controlplane.controllers.runtime import Pending, picked
from controlplane.controllers.workloads import adoption
from controlplane.machinery import objects
from controlplane.machinery.errors import NotFound

Obj = dict[str, Any]
Key = tuple[str, str]
Patch = Callable[[Obj, Obj], Obj]  # of an owner and its dependent


class Family:
    """`owners` are indexed by `namespace`, `dependents` by `controller`; `pending` remembers what is written."""

    def __init__(self, client: Client, pending: Pending, owners: Informer, dependents: Informer,
                 selector: Callable[[Obj], Any]) -> None:
        self.client, self.pending = client, pending
        self.owners, self.dependents, self.selector = owners, dependents, selector

    def concerned(self, kind: str, old: Obj | None, new: Obj) -> Iterator[Key]:
        """Whom the event of a dependent concerns: its owner, or whoever may adopt it."""
        resource = self.owners.resource
        for one in (old, new) if old is not None else (new,):
            owner = objects.controller_of(one)
            if owner is not None:
                if (owner.get("apiVersion"), owner.get("kind")) == (resource.api_version, resource.kind):
                    yield objects.namespace(one), owner["name"]
            elif kind != "DELETED" and objects.labels(one):
                yield from self._candidates(one)

    def _candidates(self, orphan: Obj) -> Iterator[Key]:
        labels = objects.labels(orphan)
        return map(objects.key, picked(self.owners.by("namespace", objects.namespace(orphan)),
                                       lambda owner: bool(self.selector(owner).matches(labels))))

    async def claim(self, key: Key, owner: Obj, may_own: Callable[[Obj, Obj], bool] = lambda owner, one: True,
                    adopt: Patch = adoption.adopt, release: Patch | None = adoption.release) -> list[Obj]:
        """The owner's dependents, after adopting and releasing; without `release` what no longer matches stays."""
        found = adoption.claim(owner, self.selector(owner), [
            *self.dependents.by("controller", objects.uid(owner)),
            *self.dependents.by("controller", f"orphan/{key[0]}")])
        mine = [*found.mine, *(found.release if release is None else ())]
        orphans = [one for one in found.adopt if may_own(owner, one)]
        for one in orphans if orphans and await self._stands(key, owner) else ():
            if (adopted := await self.patch(key, one, adopt(owner, one))) is not None:
                mine.append(adopted)
        if release is not None:
            for one in found.release:
                await self.patch(key, one, release(owner, one))
        return mine

    async def _stands(self, key: Key, owner: Obj) -> bool:
        live = await self.client.get(self.owners.resource, key[1], key[0])
        return objects.uid(live) == objects.uid(owner) and not objects.deleting(live)

    async def patch(self, key: Key, one: Obj, patch: Obj, kind: str = "strategic") -> Obj | None:
        """The dependent after the patch; None when it is gone."""
        try:
            changed = await self.client.patch(self.dependents.resource, objects.name(one), patch, key[0], kind)
        except NotFound:
            return None
        self.pending.wrote(key, changed)
        return changed
