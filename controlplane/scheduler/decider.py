"""The scheduler's mind: everything a decision looks at, and the decision. Pure.

Owns the snapshot, its tables, which nodes are promised to which pods (nominations) and which volumes are about to be
bound. `decide` judges one pod, `assume` counts it as placed so that the next decision sees it, `preempt` finds who must
go. Called by `loop` for the cluster and by `imagined` for one of plain objects.

Upstream: pkg/scheduler/schedule_one.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from controlplane.machinery import objects
from controlplane.machinery.selectors import LabelSelector
from controlplane.scheduler import claims, extended, fit, preemption, verdict, volumes
from controlplane.scheduler.configuration import Profile
from controlplane.scheduler.fit import Ask, Refusal
from controlplane.scheduler.preemption import Budgets, Plan
from controlplane.scheduler.snapshot import NodeInfo, Placed, Snapshot
from controlplane.scheduler.table import Tables
from controlplane.scheduler.verdict import Verdict
from controlplane.scheduler.volumes import Choice

Obj = dict[str, Any]


class World(volumes.Shelf, claims.Shelf, Protocol):
    """What is looked up beside pods and nodes."""

    def family(self, pod: Obj) -> LabelSelector | None: ...
    def budgets(self) -> list[Obj]: ...


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a pod brings along that binds it to nodes."""

    volumes: volumes.Needs | None
    devices: claims.Needs | None

    @property
    def outright(self) -> str:
        """Why no node will do; "" when one might."""
        return (self.volumes.outright if self.volumes else "") or (self.devices.outright if self.devices else "")


@dataclass(frozen=True, slots=True)
class Errand:
    """What must be done before the pod may be bound."""

    volumes: Choice | None
    devices: claims.Grant | None


class Decider:
    def __init__(self, world: World) -> None:
        self.world = world
        self.snapshot = Snapshot()
        self.tables = Tables(self.snapshot)
        self.reserved: dict[str, tuple[str, str]] = {}  # volume -> claim it is about to be bound to
        self.granted: dict[str, Obj] = {}  # uid of a claim -> the devices that are being written into it
        self._memory = preemption.Memory()
        self._nominated: dict[str, dict[str, Placed]] = {}  # node -> pods promised to it, by uid

    # --- one pod -----------------------------------------------------------------------------------------------

    def ask(self, pod: Obj, profile: Profile) -> Ask:
        if profile.required is not None or profile.preferred:
            pod = _with_affinity(pod, profile)
        wants = fit.ask(pod, self.world.family(pod) if profile.spreads else None, profile.spreads, profile.off)
        ignored = profile.ignored | extended.classes(pod, self.world.device_classes()).keys()  # `claims` looks at those
        return fit.ignoring(wants, ignored) if ignored else wants

    def decide(self, wants: Ask, profile: Profile) -> Verdict:
        """A node, or why there is none."""
        wanted = self._belongings(wants.pod)
        if wanted is not None and (outright := wanted.outright):
            nodes = self.snapshot.size
            return Verdict("", nodes, {outright: nodes}, outright)
        check = (lambda node: self._late(wants, wanted, node)) if wanted is not None or self._nominated else None
        first = (wants.pod.get("status") or {}).get("nominatedNodeName") or ""
        return verdict.decide(wants, self.snapshot, self.tables, profile.weights, check, first)

    def fitting(self, wants: Ask, profile: Profile) -> list[str]:
        """All nodes that take the pod, the best first."""
        wanted = self._belongings(wants.pod)
        table = self.tables.of(wants, profile.weights)
        return [name for name in table.best() if (node := self.snapshot.node(name)) is not None
                and self._late(wants, wanted, node) is None]

    def _belongings(self, pod: Obj) -> Belongings | None:
        """None for a pod that brings nothing."""
        found = Belongings(volumes.needs(pod, self.world), claims.needs(pod, self.world, self.granted))
        return None if found.volumes is None and found.devices is None else found

    def _refused(self, wanted: Belongings, node: NodeInfo) -> Refusal | None:
        refused = None
        if wanted.volumes is not None:
            refused = volumes.refusal(wanted.volumes, node, self.world, self.reserved, self.snapshot)
        if refused is None and wanted.devices is not None:
            refused = claims.refusal(wanted.devices, node)
        return refused

    def _late(self, wants: Ask, wanted: Belongings | None, node: NodeInfo) -> Refusal | None:
        """What is judged only of a node about to be chosen: belongings, and room promised to pods as important."""
        if wanted is not None and (refused := self._refused(wanted, node)) is not None:
            return refused
        promised = self.promised(node.name, wants)
        if promised:
            rules = self.tables.of(wants, verdict.DEFAULT).constraints
            if not preemption.fits(wants, rules, node, (), promised):
                trial = node.copy()
                for placed in promised:
                    trial.count(objects.uid(placed.pod), placed, 1)
                return fit.refusal(wants, trial) or Refusal(("node(s) were promised to more important pods",))
        return None

    # --- placing -----------------------------------------------------------------------------------------------

    def assume(self, pod: Obj, node: str) -> Errand | None:
        """Count the pod as placed; what must be done before it is bound, None when nothing."""
        info = self.snapshot.node(node)
        wanted = self._belongings(pod)
        choice, grant = None, None
        if wanted is not None and wanted.volumes is not None and wanted.volumes.open and info is not None:
            found = volumes.choose(wanted.volumes, info, self.world, self.reserved)
            choice = found if isinstance(found, Choice) else None
            for claim, volume in choice.static if choice is not None else ():
                self.reserved[objects.name(volume)] = objects.key(claim)
        if wanted is not None and wanted.devices is not None and info is not None:
            grant = claims.grant(wanted.devices, info)
            self.granted |= {objects.uid(claim): made for claim, made in grant.claims if made is not None}
        self.snapshot.place(pod, node)
        self.renounce(objects.uid(pod))
        return None if choice is None and grant is None else Errand(choice, grant)

    def idle_claim(self, pod: Obj) -> Obj | None:
        """A claim whose devices hold the pod on a node and which nobody else has: they may as well be given back."""
        wanted = claims.needs(pod, self.world, self.granted)
        return claims.idle(wanted, pod) if wanted is not None else None

    def forget(self, uid: str) -> None:
        """The pod did not get its node after all."""
        self.snapshot.remove(uid)

    def release(self, errand: Errand, done: bool) -> None:
        """The errand is over. Devices that were granted count as such until their claims are seen to say so."""
        for _, volume in errand.volumes.static if errand.volumes is not None else ():
            self.reserved.pop(objects.name(volume), None)
        for claim, made in errand.devices.claims if errand.devices is not None and not done else ():
            if made is not None:
                self.granted.pop(objects.uid(claim), None)

    # --- nominations -------------------------------------------------------------------------------------------

    def nominate(self, pod: Obj, node: str) -> None:
        """Promise the pod room on `node`, which others of its priority or less must leave alone."""
        self.renounce(objects.uid(pod))
        wants = fit.ask(pod)
        placed = Placed(node, wants.demand, self.snapshot.describe(pod), pod)
        self._nominated.setdefault(node, {})[objects.uid(pod)] = placed

    def renounce(self, uid: str) -> str:
        """Take a promise back; the node it was for, "" when there was none."""
        for node, pods in self._nominated.items():
            if pods.pop(uid, None) is not None:
                if not pods:
                    del self._nominated[node]
                return node
        return ""

    def promised(self, node: str, wants: Ask) -> list[Placed]:
        own = wants.pod["metadata"].get("uid", "")
        return [placed for uid, placed in self._nominated.get(node, {}).items()
                if uid != own and placed.priority >= wants.priority]

    def outranked(self, node: str, priority: int) -> list[Obj]:
        """Pods promised to `node` that are less important."""
        return [p.pod for p in self._nominated.get(node, {}).values() if p.priority < priority]

    # --- preemption --------------------------------------------------------------------------------------------

    def preempt(self, wants: Ask, found: Verdict) -> tuple[list[Plan], str]:
        """(what could be done, why nothing can be in upstream's words)."""
        if found.table is None:
            return [], preemption_hopeless(found.nodes)
        if why := preemption.ineligible(wants, self.snapshot):
            return [], why
        wanted = self._belongings(wants.pod)

        def holds(node: NodeInfo) -> bool:
            return wanted is None or self._refused(wanted, node) is None
        plans = preemption.plans(wants, found.table, found.late, self.snapshot, Budgets(self.world.budgets()),
                                 preemption.always if wanted is None else holds,
                                 lambda node: self.promised(node, wants), self._memory)
        return plans, "" if plans else preemption.told(found.table, found.nodes)


def preemption_hopeless(nodes: int) -> str:
    return f"0/{nodes} nodes are available: {nodes} {preemption.NOT_HELPFUL}."


def _with_affinity(pod: Obj, profile: Profile) -> Obj:
    """The pod, whose nodes must also satisfy the profile's terms: each of its alternatives with each of theirs."""
    affinity = dict((pod.get("spec") or {}).get("affinity") or {})
    node = dict(affinity.get("nodeAffinity") or {})
    if profile.required is not None:
        own = (node.get(fit.terms.REQUIRED) or {}).get("nodeSelectorTerms") or [{}]
        node[fit.terms.REQUIRED] = {"nodeSelectorTerms": [_both(a, b) for a in own for b in profile.required]}
    node[fit.terms.PREFERRED] = [*(node.get(fit.terms.PREFERRED) or ()), *profile.preferred]
    return {**pod, "spec": {**pod["spec"], "affinity": {**affinity, "nodeAffinity": node}}}


def _both(left: Mapping[str, Any], right: Mapping[str, Any]) -> Obj:
    return {field: [*(left.get(field) or ()), *(right.get(field) or ())]
            for field in ("matchExpressions", "matchFields")}
