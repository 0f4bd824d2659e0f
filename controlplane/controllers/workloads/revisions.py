"""Keeps the ControllerRevisions of DaemonSets and StatefulSets: creates, renumbers, adopts and forgets them.

Runs `history`'s plans. Promises that one template has one revision however often it is asked for, also after a crash in
the middle. Never touches pods. Called by the controllers of both.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from controlplane.controllers.runtime import Context, Pending, by_controller, by_namespace, delete_quietly
from controlplane.controllers.workloads import history
from controlplane.controllers.workloads.family import Family
from controlplane.machinery import objects, selectors
from controlplane.machinery.errors import AlreadyExists
from controlplane.machinery.resources import Resource, named

Obj = dict[str, Any]
Key = tuple[str, str]


class Revisions:
    """The revisions of the owners of one kind."""

    def __init__(self, context: Context, owners: Resource) -> None:
        self.resource = named("controllerrevisions.apps")
        self.informer = context.informer(self.resource, controller=by_controller)
        self.client = context.client
        self._pending = Pending()
        self._family = Family(context.client, self._pending, context.informer(owners, namespace=by_namespace),
                              self.informer, lambda owner: selectors.from_label_selector(owner["spec"]["selector"]))

    def settled(self, key: Key) -> bool:
        return self._pending.settled(key, self.informer)

    def forget(self, key: Key) -> None:
        self._pending.forget(key)

    async def current(self, key: Key, owner: Obj) -> tuple[Obj, list[Obj]] | None:
        """(the revision of the owner's template, all revisions); None when its name is another's: count a collision."""
        known = await self._family.claim(key, owner, release=None)
        plan = history.plan(owner, known)
        if plan.create:
            made = await self._create(owner, plan.current)
            if made is None:
                return None
            self._pending.wrote(key, made)
            return made, [*known, made]
        current = plan.current
        if plan.renumber:
            patch = {"metadata": {"uid": objects.uid(current)}, "revision": plan.renumber}
            current = await self._family.patch(key, current, patch, "merge") or current
        return current, [current if objects.uid(one) == objects.uid(current) else one for one in known]

    async def _create(self, owner: Obj, wanted: Obj) -> Obj | None:
        try:
            return await self.client.create(self.resource, wanted)
        except AlreadyExists:
            found = await self.client.get(self.resource, objects.name(wanted), objects.namespace(wanted))
            mine = (objects.controller_of(found) or {}).get("uid") == objects.uid(owner)
            return found if mine and found.get("data") == wanted["data"] else None

    async def forget_surplus(self, key: Key, owner: Obj, known: list[Obj], live: Set[str]) -> None:
        for one in history.surplus(owner, known, live):
            if await delete_quietly(self.client, self.resource, one):
                self._pending.deleted(key, one)
