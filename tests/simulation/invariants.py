"""What must hold at every moment of a simulation, and what must hold when all has settled.

Owns the watching of every change as it is stored. A broken rule is told once, with the virtual time. Rules: a rollout
never wants more pods than replicas + maxSurge, a ReplicaSet never has more pods than it wants, an eviction never takes
a pod that a budget keeps; in the end counts agree, nothing is left without its owner, and nobody goes on writing.
Called by `story`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controlplane.apiserver.server import Server
from controlplane.machinery import objects, selectors
from controlplane.machinery.resources import named
from controlplane.store.cache import prefix_of

WATCHED = ("pods", "deployments.apps", "replicasets.apps", "statefulsets.apps", "daemonsets.apps", "jobs.batch",
           "poddisruptionbudgets.policy", "nodes")
ENDED = ("Succeeded", "Failed")
Obj = dict[str, Any]


def live(pod: Obj) -> bool:
    return not objects.deleting(pod) and objects.get(pod, "status.phase", "") not in ENDED


def ready(pod: Obj) -> bool:
    return live(pod) and (objects.condition(pod, "Ready") or {}).get("status") == "True"


class Invariants:
    def __init__(self, server: Server, now: Callable[[], float]) -> None:
        self._server, self._now = server, now
        self.broken: list[str] = []
        self.writes = 0
        self._wanted: dict[str, int] = {}  # uid of a ReplicaSet -> the most it wanted since it last had what it wants
        self._sizes: dict[str, int] = {}  # uid of a Deployment -> the most pods it allowed since it last kept to it
        for name in WATCHED:
            server.cache.observe(prefix_of(named(name).name), lambda event, name=name: self._heard(name, event))

    def tell(self, text: str) -> None:
        if len(self.broken) < 20:  # the first are what matters
            self.broken.append(f"after {self._now():,.1f} s: {text}")

    def _heard(self, resource: str, event: Any) -> None:
        self.writes += 1
        obj = event.item.obj
        if resource == "replicasets.apps":
            size = 0 if event.kind == "DELETED" else objects.get(obj, "spec.replicas", 0)
            # Until it says that it has what it wants now, it may still be making what it wanted before.
            settled = size == objects.get(obj, "status.replicas", 0) and \
                obj["metadata"].get("generation") == objects.get(obj, "status.observedGeneration", 0)
            self._wanted[objects.uid(obj)] = size if settled else max(self._wanted.get(objects.uid(obj), 0), size)
            before = objects.get(event.previous.obj, "spec.replicas", 0) if event.previous is not None else 0
            if size > before:
                self._grown(obj)
        elif resource == "deployments.apps":
            self._sizes[objects.uid(obj)] = max(self._sizes.get(objects.uid(obj), 0), _allowed(obj))
        elif resource == "pods" and event.kind == "ADDED":
            self._created(obj)

    def _grown(self, replicaset: Obj) -> None:
        owner = objects.controller_of(replicaset)
        deployment = self._find("deployments.apps", replicaset, owner)
        if deployment is None:
            return
        total = sum(objects.get(one, "spec.replicas", 0) for one in self.all("replicasets.apps")
                    if (objects.controller_of(one) or {}).get("uid") == objects.uid(deployment))
        most = self._sizes.get(objects.uid(deployment), 0)
        if total > most:
            self.tell(f"deployment {objects.name(deployment)} wants {total} pods, {most} are allowed")
        elif total <= _allowed(deployment):
            self._sizes[objects.uid(deployment)] = _allowed(deployment)

    def _created(self, pod: Obj) -> None:
        owner = objects.controller_of(pod) or {}
        if owner.get("kind") != "ReplicaSet":
            return
        count = sum(live(one) and (objects.controller_of(one) or {}).get("uid") == owner["uid"]
                    for one in self.all("pods"))
        most = self._wanted.get(owner["uid"], 0)
        if count > most:
            self.tell(f"replicaset {owner['name']} has {count} pods and never wanted more than {most}")

    def evicted(self, pod: Obj) -> None:
        """An eviction was granted: every budget of the pod must still be kept."""
        for budget in self.all("poddisruptionbudgets.policy"):
            selector = selectors.from_label_selector(objects.get(budget, "spec.selector"))
            if objects.namespace(budget) != objects.namespace(pod) or not selector.matches(objects.labels(pod)):
                continue
            healthy = sum(ready(one) for one in self.all("pods") if selector.matches(objects.labels(one))
                          and objects.namespace(one) == objects.namespace(pod))
            least = objects.get(budget, "spec.minAvailable", None)
            if not isinstance(least, int):  # of a share, or what may be lacking: as last told of the workload's size
                least = objects.get(budget, "status.desiredHealthy", 0)
            if healthy < least:
                self.tell(f"the eviction of {objects.name(pod)} left {healthy} healthy pods, "
                           f"budget {objects.name(budget)} keeps {least}")

    # --- when all has settled ----------------------------------------------------------------------------------

    def unsettled(self) -> list[str]:
        """What does not agree yet; empty when everything has converged."""
        found = []
        pods = self.all("pods")
        for deployment in self.all("deployments.apps"):
            status, wanted = deployment.get("status") or {}, objects.get(deployment, "spec.replicas", 1)
            counts = [status.get(field, 0) for field in ("replicas", "updatedReplicas", "readyReplicas")]
            if counts != [wanted] * 3 or status.get("observedGeneration") != deployment["metadata"].get("generation"):
                found.append(f"deployment {objects.name(deployment)}: {counts} of {wanted}")
        for name in ("replicasets.apps", "statefulsets.apps"):
            for one in self.all(name):
                have = sum((objects.controller_of(pod) or {}).get("uid") == objects.uid(one) and ready(pod)
                           for pod in pods)
                if have != objects.get(one, "spec.replicas", 0):
                    found.append(f"{one['kind']} {objects.name(one)}: {have} of {objects.get(one, 'spec.replicas', 0)}")
        for one in self.all("daemonsets.apps"):
            status = one.get("status") or {}
            if status.get("numberReady") != len(self.all("nodes")) or \
                    status.get("updatedNumberScheduled") != len(self.all("nodes")):
                found.append(f"daemonset {objects.name(one)}: {status.get('numberReady')} of {len(self.all('nodes'))}")
        for one in self.all("jobs.batch"):
            wanted = objects.get(one, "spec.completions", 1)
            if objects.condition(one, "Complete") is None or objects.get(one, "status.succeeded", 0) != wanted:
                found.append(f"job {objects.name(one)}: {objects.get(one, 'status.succeeded', 0)} of {wanted}")
        found += [f"pod {objects.name(pod)} is still leaving" for pod in pods if objects.deleting(pod)]
        found += [f"pod {objects.name(pod)} has no node" for pod in pods if not objects.get(pod, "spec.nodeName")]
        return found

    def orphans(self) -> list[str]:
        """Whoever names an owner that is no more."""
        uids = {objects.uid(one) for name in (*WATCHED, "cronjobs.batch") for one in self.all(name)}
        return [f"{one['kind']} {objects.name(one)} outlived its owner {reference['kind']} {reference['name']}"
                for name in ("pods", "replicasets.apps", "jobs.batch") for one in self.all(name)
                for reference in one["metadata"].get("ownerReferences") or () if reference["uid"] not in uids]

    def all(self, name: str) -> list[Obj]:
        return [item.obj for item in self._server.cache.list(prefix_of(named(name).name))]

    def _find(self, name: str, near: Obj, owner: Obj | None) -> Obj | None:
        return next((one for one in self.all(name) if owner and objects.uid(one) == owner["uid"]), None)


def _allowed(deployment: Obj) -> int:
    """Pods its ReplicaSets may want together."""
    wanted = objects.get(deployment, "spec.replicas", 1)
    surge = objects.get(deployment, "spec.strategy.rollingUpdate.maxSurge", 0)
    return wanted + (objects.int_or_percent(surge, wanted, True) if surge else 0)
