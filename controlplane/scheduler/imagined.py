"""Scheduling in the mind: a cluster as plain objects, and what would become of pods in it. Pure.

Owns the expansion of workloads into the pods their controllers would make, by what these decide by themselves, and the
run of the real decisions over them. Nothing is written anywhere. Called by `pelamis whatif` with a snapshot of the
cluster, and by whoever explains pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.controllers.workloads import templates
from controlplane.controllers.workloads.daemonsets import eligibility
from controlplane.machinery import objects, podfacts, selectors, strategy
from controlplane.machinery.resources import named
from controlplane.machinery.selectors import LabelSelector
from controlplane.scheduler import nearest, preemption
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.decider import Decider

Obj = dict[str, Any]
PODS = named("pods")
REPLICATED = ("Deployment", "ReplicaSet", "StatefulSet", "ReplicationController")
RESOURCES = ("nodes", "pods", "namespaces", "services", "poddisruptionbudgets.policy", "persistentvolumeclaims",
             "persistentvolumes", "storageclasses.storage.k8s.io", "csinodes.storage.k8s.io",
             "csidrivers.storage.k8s.io", "csistoragecapacities.storage.k8s.io",
             "resourceclaims.resource.k8s.io", "deviceclasses.resource.k8s.io", "resourceslices.resource.k8s.io",
             "priorityclasses.scheduling.k8s.io", "replicasets.apps")


@dataclass(slots=True)
class Outcome:
    """What would become of one pod. `leaving` are pods that would be preempted for it."""

    pod: Obj
    node: str = ""
    message: str = ""
    nearest: Obj | None = None
    leaving: list[str] = field(default_factory=list)


class Cluster:
    """Objects by resource name, as a `decider.World`."""

    def __init__(self, objects_of: Mapping[str, Sequence[Obj]]) -> None:
        self._of = objects_of
        self._claims = {objects.key(c): c for c in objects_of.get("persistentvolumeclaims", ())}
        self._volumes = {objects.name(v): v for v in objects_of.get("persistentvolumes", ())}

    def family(self, pod: Obj) -> LabelSelector | None:
        labels = objects.labels(pod)
        equal: dict[str, str] = {}
        for service in self._of.get("services", ()):
            wanted = objects.get(service, "spec.selector", None) or {}
            if objects.namespace(service) == objects.namespace(pod) and wanted and wanted.items() <= labels.items():
                equal |= wanted
        if objects.controller_of(pod) is not None:  # its workload selects by labels that the template has
            equal |= labels
        return selectors.from_map(equal) if equal else None

    def budgets(self) -> list[Obj]:
        return list(self._of.get("poddisruptionbudgets.policy", ()))

    def claim(self, namespace: str, name: str) -> Obj | None:
        return self._claims.get((namespace, name))

    def volume(self, name: str) -> Obj | None:
        return self._volumes.get(name)

    def volumes(self) -> Iterable[Obj]:
        return self._volumes.values()

    def storage_class(self, name: str) -> Obj | None:
        return self._named("storageclasses.storage.k8s.io", name)

    def csi_node(self, name: str) -> Obj | None:
        return self._named("csinodes.storage.k8s.io", name)

    def csi_driver(self, name: str) -> Obj | None:
        return self._named("csidrivers.storage.k8s.io", name)

    def capacities(self) -> Iterable[Obj]:
        return self._of.get("csistoragecapacities.storage.k8s.io", ())

    def device_claim(self, namespace: str, name: str) -> Obj | None:
        return next((one for one in self.device_claims() if objects.key(one) == (namespace, name)), None)

    def device_claims(self) -> Iterable[Obj]:
        return self._of.get("resourceclaims.resource.k8s.io", ())

    def device_class(self, name: str) -> Obj | None:
        return self._named("deviceclasses.resource.k8s.io", name)

    def device_classes(self) -> Iterable[Obj]:
        return self._of.get("deviceclasses.resource.k8s.io", ())

    def device_slices(self) -> Iterable[Obj]:
        return self._of.get("resourceslices.resource.k8s.io", ())

    def _named(self, resource: str, name: str) -> Obj | None:
        return next((one for one in self._of.get(resource, ()) if objects.name(one) == name), None)

    def priority(self, pod: Obj) -> None:
        """Give the pod what the Priority admission plugin would give it."""
        classes, spec = self._of.get("priorityclasses.scheduling.k8s.io", ()), pod["spec"]
        name = spec.get("priorityClassName")
        found = next((c for c in classes if (objects.name(c) == name if name else c.get("globalDefault"))), None)
        if found is not None:
            spec["priority"] = found.get("value", 0)
            if policy := found.get("preemptionPolicy"):
                spec["preemptionPolicy"] = policy


# --- workloads to pods -------------------------------------------------------------------------------------------

def expand(document: Obj, nodes: Sequence[Obj], cluster: Cluster) -> list[Obj]:
    """The pods that would come of an object; none for kinds that make no pods."""
    kind, name, spec = document.get("kind", ""), objects.name(document), document.get("spec") or {}
    owner = {**document, "metadata": {"namespace": "default", "uid": f"imagined-{name}", **document["metadata"]}}
    if kind == "Pod":
        return [_made(objects.deep_copy({"metadata": owner["metadata"], "spec": spec}), name, cluster)]
    if kind == "CronJob":
        return expand({**(spec.get("jobTemplate") or {}), "apiVersion": "batch/v1", "kind": "Job",
                       "metadata": document["metadata"]}, nodes, cluster)
    if kind == "DaemonSet":
        return [_made(eligibility.child(owner, at, "imagined"), f"{name}-{at}", cluster)
                for at in (objects.name(node) for node in nodes if eligibility.judge(owner, node)[0])]
    if kind in REPLICATED or kind == "Job":
        given = spec.get("replicas" if kind in REPLICATED else "parallelism")
        return [_made(templates.pod_of(owner), f"{name}-{number}", cluster)
                for number in range(1 if given is None else given)]
    return []


def _made(pod: Obj, name: str, cluster: Cluster) -> Obj:
    """The pod under its name, as the API server would store it as far as decisions look."""
    pod["metadata"] |= {"name": name, "uid": f"imagined-{objects.namespace(pod)}-{name}"}
    strategy.of(PODS).default(pod)
    cluster.priority(pod)
    return pod


def replaces(pod: Obj, documents: Sequence[Obj], owners: Mapping[str, Obj]) -> bool:
    """Whether a running pod would go when the documents are applied: it belongs to a workload of that name."""
    if objects.get(pod, "kind", "") == "Pod" and any(d.get("kind") == "Pod" and _key(d) == objects.key(pod)
                                                     for d in documents):
        return True
    owner = objects.controller_of(pod)
    while owner is not None:
        if any((d.get("kind"), *_key(d)) == (owner["kind"], objects.namespace(pod), owner["name"]) for d in documents):
            return True
        above = owners.get(owner.get("uid", ""))
        owner = objects.controller_of(above) if above is not None else None
    return False


def _key(document: Obj) -> tuple[str, str]:
    return document["metadata"].get("namespace") or "default", objects.name(document)


def moves(pod: Obj) -> bool:
    """Whether a pod of a lost node would be made anew elsewhere."""
    owner = objects.controller_of(pod)
    return owner is not None and owner.get("kind") not in ("DaemonSet", "Node")


# --- the run -----------------------------------------------------------------------------------------------------

def outcomes(objects_of: Mapping[str, Sequence[Obj]], documents: Sequence[Obj],
             without: frozenset[str] = frozenset()) -> list[Outcome]:
    """What would become of the documents' pods, and of those that ran on the nodes `without`."""
    cluster = Cluster(objects_of)
    nodes = [n for n in objects_of.get("nodes", ()) if objects.name(n) not in without]
    decider = _decider(cluster, objects_of, nodes)
    owners = {objects.uid(o): o for o in objects_of.get("replicasets.apps", ())}
    waiting: list[Obj] = []
    for pod in objects_of.get("pods", ()):
        at = objects.get(pod, "spec.nodeName", "")
        if not at or podfacts.finished(pod) or replaces(pod, documents, owners):
            continue
        if at not in without:
            decider.snapshot.place(pod, at)
        elif moves(pod):
            waiting.append({**pod, "spec": {**pod["spec"], "nodeName": ""}})
    waiting += [pod for document in documents for pod in expand(document, nodes, cluster)]
    waiting.sort(key=lambda pod: -(pod["spec"].get("priority") or 0))
    return [_place(decider, pod) for pod in waiting]


def outcome(pod: Obj, objects_of: Mapping[str, Sequence[Obj]]) -> Outcome:
    """What would become of a pod that waits, if it were tried now."""
    cluster = Cluster(objects_of)
    decider = _decider(cluster, objects_of, objects_of.get("nodes", ()))
    for other in objects_of.get("pods", ()):
        if (at := objects.get(other, "spec.nodeName", "")) and not podfacts.finished(other):
            decider.snapshot.place(other, at)
    return _place(decider, pod)


def _decider(cluster: Cluster, objects_of: Mapping[str, Sequence[Obj]], nodes: Sequence[Obj]) -> Decider:
    decider = Decider(cluster)
    for namespace in objects_of.get("namespaces", ()):
        decider.snapshot.set_namespace(objects.name(namespace), objects.labels(namespace))
    for node in nodes:
        decider.snapshot.set_node(node)
    return decider


def _place(decider: Decider, pod: Obj) -> Outcome:
    profile = Profile()
    if gates := (pod.get("spec") or {}).get("schedulingGates"):
        return Outcome(pod, message=f"held by scheduling gates {', '.join(g['name'] for g in gates)}")
    wants = decider.ask(pod, profile)
    found = decider.decide(wants, profile)
    if found.node:
        decider.assume(pod, found.node)
        return Outcome(pod, found.node)
    plan = preemption.choose(decider.preempt(wants, found)[0]) if found.table is not None else None
    if plan is not None:
        leaving = [f"{objects.namespace(v.pod)}/{objects.name(v.pod)}" for v in plan.victims]
        for placed in plan.victims:
            decider.snapshot.remove(objects.uid(placed.pod))
        decider.assume(pod, plan.node)
        return Outcome(pod, plan.node, leaving=leaving)
    return Outcome(pod, message=found.message, nearest=nearest.miss(found.table, wants))
