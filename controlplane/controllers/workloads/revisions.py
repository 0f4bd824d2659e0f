"""Keeps the ControllerRevisions of DaemonSets and StatefulSets: creates, renumbers, adopts and forgets them.

Runs `history`'s plans. Promises that one template has one revision however often it is asked for, also after a crash in
the middle. Never touches pods. Called by the controllers of both.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from controlplane.controllers.runtime import Context, Pending, by_controller, delete_quietly
from controlplane.controllers.workloads import adoption, history
from controlplane.machinery import objects, selectors
from controlplane.machinery.errors import AlreadyExists, NotFound
from controlplane.machinery.resources import Resource, named

Obj = dict[str, Any]
Key = tuple[str, str]


class Revisions:
    """The revisions of the owners of one kind."""

    def __init__(self, context: Context, owners: Resource) -> None:
        self.resource = named("controllerrevisions.apps")
        self.informer = context.informer(self.resource, controller=by_controller)
        self.client, self._owners = context.client, owners
        self._pending = Pending()

    def settled(self, key: Key) -> bool:
        return self._pending.settled(key, self.informer)

    def forget(self, key: Key) -> None:
        self._pending.forget(key)

    async def current(self, key: Key, owner: Obj) -> tuple[Obj, list[Obj]] | None:
        """(the revision of the owner's template, all revisions); None when its name is another's: count a collision."""
        known = await self._claim(key, owner)
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
            current = await self._patch(key, current, patch, "merge") or current
        return current, [current if objects.uid(one) == objects.uid(current) else one for one in known]

    async def _create(self, owner: Obj, wanted: Obj) -> Obj | None:
        try:
            return await self.client.create(self.resource, wanted)
        except AlreadyExists:
            found = await self.client.get(self.resource, objects.name(wanted), objects.namespace(wanted))
            mine = (objects.controller_of(found) or {}).get("uid") == objects.uid(owner)
            return found if mine and found.get("data") == wanted["data"] else None

    async def _claim(self, key: Key, owner: Obj) -> list[Obj]:
        candidates = [*self.informer.by("controller", objects.uid(owner)),
                      *self.informer.by("controller", f"orphan/{key[0]}")]
        claim = adoption.claim(owner, selectors.from_label_selector(owner["spec"]["selector"]), candidates)
        mine = [*claim.mine, *claim.release]  # what the selector no longer matches still is a revision of ours
        if claim.adopt:
            live = await self.client.get(self._owners, key[1], key[0])
            if objects.uid(live) != objects.uid(owner) or objects.deleting(live):
                return mine
        for one in claim.adopt:
            adopted = await self._patch(key, one, adoption.adoption(owner, one), "strategic")
            if adopted is not None:
                mine.append(adopted)
        return mine

    async def _patch(self, key: Key, one: Obj, patch: Obj, kind: str) -> Obj | None:
        try:
            changed = await self.client.patch(self.resource, objects.name(one), patch, key[0], kind)
        except NotFound:
            return None
        self._pending.wrote(key, changed)
        return changed

    async def forget_surplus(self, key: Key, owner: Obj, known: list[Obj], live: Set[str]) -> None:
        for one in history.surplus(owner, known, live):
            if await delete_quietly(self.client, self.resource, one):
                self._pending.deleted(key, one)
