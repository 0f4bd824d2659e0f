"""DaemonSets: one pod on every node that shall have one.

Runs `daemons.plan` and keeps the template's revisions. Promises that no node gets a second pod while a first may be on
its way, and that a finished pod is replaced ever more slowly. Asks every DaemonSet again only when a node changed in
what eligibility reads. Called by `manager`. Upstream: pkg/controller/daemon.
"""

from __future__ import annotations

from typing import Any

from controlplane.controllers.runtime import NODES, STALE_SECONDS, Context, count_collision, picked, set_status
from controlplane.controllers.workloads.daemonsets import daemons, eligibility
from controlplane.controllers.workloads.history import HASH_LABEL
from controlplane.controllers.workloads.podowner import Key, PodOwner
from controlplane.controllers.workloads.revisions import Revisions
from controlplane.machinery import objects, podfacts
from controlplane.machinery.errors import ApiError
from controlplane.machinery.resources import named

FAILED_FIRST, FAILED_LIMIT = 1.0, 900.0  # seconds until a finished pod is replaced, doubled each time: upstream's

Obj = dict[str, Any]


class DaemonSets(PodOwner):
    name = "daemonset-controller"

    def __init__(self, context: Context) -> None:
        resource = named("daemonsets.apps")
        self.nodes = context.informer(NODES)
        self.revisions = Revisions(context, resource)
        self._finished: dict[tuple[str, str, str], tuple[int, float]] = {}  # owner's uid, node, revision: times, last
        super().__init__(context, resource, self.nodes, self.revisions.informer)
        self.nodes.subscribe(self._node_changed)

    def owner_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        super().owner_changed(kind, old, new)
        if kind == "DELETED":
            self.revisions.forget(objects.key(new))
            self._finished = {at: what for at, what in self._finished.items() if at[0] != objects.uid(new)}

    def _node_changed(self, kind: str, old: Obj | None, new: Obj) -> None:
        def seen(node: Obj) -> tuple[Any, ...]:
            return (objects.labels(node), objects.get(node, "spec.taints", []),
                    objects.get(node, "spec.unschedulable", False))
        if kind == "MODIFIED" and old is not None and seen(old) == seen(new):
            return
        for owner in picked(self.owners.items(), lambda one: kind != "MODIFIED" or eligibility.judge(
                one, new) != eligibility.judge(one, old or new)):
            self.queue.add(objects.key(owner))

    async def reconcile(self, key: Key) -> float | None:
        owner = self.owners.get(*key)
        if owner is None:
            return None
        if not (self.pending.settled(key, self.pods) and self.revisions.settled(key)):
            return STALE_SECONDS
        if self.selector(owner).empty:
            self.recorder.event(owner, "Warning", "SelectingAll",
                                "This daemon set is selecting all pods. A non-empty selector is required.")
            return None
        if objects.deleting(owner):
            return None
        found = await self.revisions.current(key, owner)
        if found is None:
            await count_collision(self.client, self.resource, owner)
            return None
        current, known = found
        revision = objects.labels(current)[HASH_LABEL]
        pods = await self.claim(key, owner)
        nodes = self.nodes.items()
        plan = daemons.plan(owner, nodes, pods, revision, self.clock.now())
        wait, error = await self._apply(key, owner, plan, revision)
        live = {objects.name(current), *(f"{key[1]}-{objects.labels(pod).get(HASH_LABEL, '')}" for pod in pods)}
        await self.revisions.forget_surplus(key, owner, known, live)
        now = self.clock.now()
        await set_status(self.client, self.resource, owner, daemons.status(owner, nodes, pods, revision, now))
        if error is not None:
            raise error  # tried again with back-off
        soon = podfacts.next_available(pods, objects.get(owner, "spec.minReadySeconds", 0), now)
        return min((one for one in (wait, soon) if one is not None), default=None)

    async def _apply(self, key: Key, owner: Obj, plan: daemons.Plan, revision: str) -> tuple[float | None,
                                                                                            ApiError | None]:
        """(seconds until a finished pod may be replaced, the error that stopped us)."""
        delete, wait = list(plan.delete), None
        for pod in plan.finished:
            delay = self._delay(owner, eligibility.node_of(pod), revision)
            if delay > 0:
                wait = delay if wait is None else min(wait, delay)
            else:
                self._tell_finished(owner, pod)
                if pod not in delete:
                    delete.append(pod)
        failed = await self.create_pods(key, owner, [eligibility.child(owner, node, revision) for node in plan.create],
                                        lambda _: objects.name(owner) + "-")
        return wait, await self.delete_pods(key, owner, delete) or failed

    def _delay(self, owner: Obj, node: str, revision: str) -> float:
        """Seconds before a finished pod of the node may go; asking when it may counts as once more."""
        at, now = (objects.uid(owner), node, revision), self.clock.monotonic()
        times, last = self._finished.get(at, (0, 0.0))
        pause = min(FAILED_LIMIT, FAILED_FIRST * 2 ** (times - 1)) if times else 0.0
        if last + pause > now:
            return last + pause - now
        self._finished[at] = (1 if now - last > 2 * FAILED_LIMIT else min(times + 1, 20), now)
        return 0.0

    def _tell_finished(self, owner: Obj, pod: Obj) -> None:
        failed = objects.get(pod, "status.phase") == "Failed"
        what, type_ = ("failed", "Warning") if failed else ("succeeded", "Normal")
        again = "will try to kill it" if failed else "will try to delete it"
        self.recorder.event(owner, type_, "FailedDaemonPod" if failed else "SucceededDaemonPod",
                            f"Found {what} daemon pod {objects.namespace(pod)}/{objects.name(pod)} on node "
                            f"{eligibility.node_of(pod)}, {again}")
