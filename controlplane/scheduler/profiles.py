"""A profile of the scheduler: which plugins count how much for the pods that name it, and with which arguments. Pure.

Owns the meaning of `plugins` and `pluginConfig`: what is enabled where, as upstream merges it with its defaults. A
filter that cannot be switched off says so. Called by `configuration`.

Upstream: kubescheduler.config.k8s.io/v1 and pkg/scheduler/apis/config/v1/default_plugins.go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from controlplane.scheduler import fit
from controlplane.scheduler.fit import Off
from controlplane.scheduler.score import BEST, DEFAULT, EVENLY, Resources, Strategy, Weights
from controlplane.scheduler.settingsfile import Part
from controlplane.scheduler.terms import SYSTEM_SPREADS, DefaultSpread

NAME = "default-scheduler"
BIND_SECONDS = 600.0  # for volumes to be made and bound: upstream's bindTimeoutSeconds
SCORERS = {"TaintToleration": "taints", "NodeAffinity": "affinity", "PodTopologySpread": "spread",
           "InterPodAffinity": "neighbours", "NodeResourcesFit": "fit",
           "NodeResourcesBalancedAllocation": "balanced", "ImageLocality": "images"}
FILTERS = ("NodeUnschedulable", "TaintToleration", "NodeAffinity", "NodePorts", "NodeResourcesFit", "PodTopologySpread",
           "InterPodAffinity")
PREEMPTION = "DefaultPreemption"
# Parts of scheduling that are always on: without them pods would be brought where they cannot run.
FIXED = ("PrioritySort", "SchedulingGates", "NodeName", "VolumeRestrictions", "NodeVolumeLimits", "VolumeBinding",
         "VolumeZone", "DynamicResources", "DefaultBinder")
POINTS = ("preEnqueue", "queueSort", "preFilter", "filter", "postFilter", "preScore", "score", "reserve", "permit",
          "preBind", "bind", "postBind", "multiPoint")
PREPARING = ("preFilter", "preScore")  # nothing by themselves: a plugin is switched at `filter` and `score`
STRATEGIES = ("LeastAllocated", "MostAllocated", "RequestedToCapacityRatio")
SHAPE_BEST = 10  # the highest score in a shape
REQUIRED, PREFERRED = fit.terms.REQUIRED, fit.terms.PREFERRED


@dataclass(frozen=True, slots=True)
class Profile:
    """How the pods that name it are scheduled. `spreads` apply to pods of a Service or workload without their own."""

    name: str = NAME
    weights: Weights = DEFAULT
    spreads: tuple[DefaultSpread, ...] = SYSTEM_SPREADS
    required: tuple[Mapping[str, Any], ...] | None = None  # node selector terms of which each pod must meet one
    preferred: tuple[Mapping[str, Any], ...] = ()  # weighted ones that each pod has beside its own
    off: Off = fit.EVERYTHING_ON
    ignored: frozenset[str] = frozenset()  # resources nodes need not have; with a slash at the end, whole groups
    preempts: bool = True
    bind_seconds: float = BIND_SECONDS


def parse(part: Part) -> Profile:
    """Raises Finding."""
    part.only("schedulerName", "plugins", "pluginConfig", "percentageOfNodesToScore")
    part.number("percentageOfNodesToScore", 0, 0, 100)
    profile = _switched(Profile(part.text("schedulerName", NAME)), part.mapping("plugins"))
    seen: set[str] = set()
    for entry in part.parts("pluginConfig"):
        entry.only("name", "args")
        name, arguments = entry.text("name"), entry.mapping("args")
        if name not in ARGUMENTS:
            raise entry.refused("name", f"is {name!r}, which takes no arguments", f"one of {', '.join(ARGUMENTS)}")
        if name in seen:
            raise entry.refused("name", f"is {name} for the second time", "put all its arguments into one entry")
        seen.add(name)
        known = ARGUMENTS[name][0]
        arguments.only("apiVersion", "kind", *known)
        profile = ARGUMENTS[name][1](profile, arguments)
    return profile


# --- plugins -----------------------------------------------------------------------------------------------------

def _switched(profile: Profile, plugins: Part) -> Profile:
    plugins.only(*POINTS)
    for point in POINTS:
        _check(plugins.mapping(point), point)
    weights = _enabled(plugins, "score", {name: getattr(DEFAULT, field) for name, field in SCORERS.items()})
    filters = _enabled(plugins, "filter", dict.fromkeys(FILTERS, 1))
    after = _enabled(plugins, "postFilter", {PREEMPTION: 1})
    changed: dict[str, Any] = {field: weights.get(name, 0) for name, field in SCORERS.items()}
    return replace(profile, weights=replace(DEFAULT, **changed),
                   off=frozenset(FILTERS) - filters.keys(), preempts=PREEMPTION in after)


def _check(sets: Part, point: str) -> None:
    """Raises Finding for plugins that are not known, or cannot be switched off."""
    sets.only("enabled", "disabled")
    known = {*SCORERS, *FILTERS, PREEMPTION, *FIXED}
    for entry in (*sets.parts("enabled"), *sets.parts("disabled")):
        entry.only("name", "weight")
        name, disabled = entry.text("name"), ".disabled" in entry.path
        if name not in known and not (disabled and name == "*"):
            raise entry.refused("name", f"is {name!r}, which is no plugin", f"one of {', '.join(sorted(known))}")
        entry.number("weight", 1, 0)
        switched = point in ("score", "filter", "postFilter", "multiPoint", *PREPARING)
        if disabled and (not switched or name in FIXED):
            raise entry.refused("name", f"is {name}, which cannot be switched off" if switched else
                                f"is {name}: nothing can be switched off at {point}", "take it out")


def _enabled(plugins: Part, point: str, defaults: Mapping[str, int]) -> dict[str, int]:
    """The plugins that are on at a point, with their weights: the defaults as changed for all points, then for it."""
    found = dict(defaults)
    for each in ("multiPoint", point):
        sets = plugins.mapping(each)
        for entry in sets.parts("disabled"):
            for name in found.keys() & ({*defaults} if entry.text("name") == "*" else {entry.text("name")}):
                del found[name]
        for entry in sets.parts("enabled"):
            if entry.text("name") in defaults:
                found[entry.text("name")] = int(entry.number("weight", 0, 0)) or 1
    return found


# --- arguments ---------------------------------------------------------------------------------------------------

def _resources(part: Part) -> Resources:
    found = tuple((one.text("name"), int(one.number("weight", 1, 1, 100))) for one in part.parts("resources"))
    return found or EVENLY


def _node_resources_fit(profile: Profile, part: Part) -> Profile:
    ignored = frozenset((*part.texts("ignoredResources"), *(f"{g}/" for g in part.texts("ignoredResourceGroups"))))
    strategy = part.mapping("scoringStrategy")
    strategy.only("type", "resources", "requestedToCapacityRatio")
    kind = strategy.text("type", STRATEGIES[0])
    if kind not in STRATEGIES:
        raise strategy.refused("type", f"is {kind!r}", f"one of {', '.join(STRATEGIES)}")
    ratio = strategy.mapping("requestedToCapacityRatio")
    ratio.only("shape")
    shape = tuple((int(p.number("utilization", 0, 0, 100)), p.number("score", 0, 0, SHAPE_BEST) * BEST / SHAPE_BEST)
                  for p in ratio.parts("shape"))
    if kind == STRATEGIES[2] and not shape:
        raise ratio.refused("shape", "is missing", "give points of utilization and score")
    if any(left[0] >= right[0] for left, right in pairwise(shape)):
        raise ratio.refused("shape", "goes backwards", "give the points by rising utilization")
    chosen = Strategy(kind, _resources(strategy), shape if kind == STRATEGIES[2] else ())
    return replace(profile, weights=replace(profile.weights, strategy=chosen), ignored=ignored)


def _balanced(profile: Profile, part: Part) -> Profile:
    return replace(profile, weights=replace(profile.weights, balance=_resources(part)))


def _spreads(profile: Profile, part: Part) -> Profile:
    kind, wanted = part.text("defaultingType", "System"), part.parts("defaultConstraints")
    if kind not in ("System", "List"):
        raise part.refused("defaultingType", f"is {kind!r}", "System or List")
    if kind == "System":
        if wanted:
            raise part.refused("defaultConstraints", "are given, but defaultingType is System", "make that List")
        return profile
    found = []
    for one in wanted:
        one.only("maxSkew", "topologyKey", "whenUnsatisfiable")
        key, when = one.text("topologyKey"), one.text("whenUnsatisfiable")
        if not key:
            raise one.refused("topologyKey", "is missing", "give a label of nodes")
        if when not in ("DoNotSchedule", "ScheduleAnyway"):
            raise one.refused("whenUnsatisfiable", f"is {when!r}", "DoNotSchedule or ScheduleAnyway")
        found.append(DefaultSpread(key, int(one.number("maxSkew", 0, 1)) or 1, when == "DoNotSchedule"))
    return replace(profile, spreads=tuple(found))


def _neighbours(profile: Profile, part: Part) -> Profile:
    return replace(profile, weights=replace(
        profile.weights, pull=int(part.number("hardPodAffinityWeight", 1, 0, 100)),
        shy=part.truth("ignorePreferredTermsOfExistingPods")))


def _added_affinity(profile: Profile, part: Part) -> Profile:
    added = part.mapping("addedAffinity")
    added.only(REQUIRED, PREFERRED)
    required = added.mapping(REQUIRED)
    required.only("nodeSelectorTerms")
    terms = required.parts("nodeSelectorTerms")
    for term in (*terms, *(one.mapping("preference") for one in added.parts(PREFERRED))):
        term.only("matchExpressions", "matchFields")
    return replace(profile, required=tuple(t.given for t in terms) if required.given else None,
                   preferred=tuple(one.given for one in added.parts(PREFERRED)))


def _binding(profile: Profile, part: Part) -> Profile:
    return replace(profile, bind_seconds=part.number("bindTimeoutSeconds", BIND_SECONDS, 0))


def _as_it_is(profile: Profile, part: Part) -> Profile:
    """Every node is a candidate: the least number of them is always reached."""
    part.number("minCandidateNodesPercentage", 10, 0, 100)
    part.number("minCandidateNodesAbsolute", 100, 0)
    return profile


ARGUMENTS: Mapping[str, tuple[tuple[str, ...], Callable[[Profile, Part], Profile]]] = {
    "NodeResourcesFit": (("ignoredResources", "ignoredResourceGroups", "scoringStrategy"), _node_resources_fit),
    "NodeResourcesBalancedAllocation": (("resources",), _balanced),
    "PodTopologySpread": (("defaultConstraints", "defaultingType"), _spreads),
    "InterPodAffinity": (("hardPodAffinityWeight", "ignorePreferredTermsOfExistingPods"), _neighbours),
    "NodeAffinity": (("addedAffinity",), _added_affinity),
    "VolumeBinding": (("bindTimeoutSeconds",), _binding),
    PREEMPTION: (("minCandidateNodesPercentage", "minCandidateNodesAbsolute"), _as_it_is)}
