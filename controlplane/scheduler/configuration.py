"""The scheduler's settings: profiles, back-off, extenders; read from a KubeSchedulerConfiguration. Pure.

Owns what of upstream's file means something here. Promises to refuse what it does not know rather than to ignore it.
Called by the process that runs the scheduler.

Upstream: kubescheduler.config.k8s.io/v1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from controlplane.machinery.errors import Finding
from controlplane.scheduler.queue import BACKOFF_FIRST, BACKOFF_MOST
from controlplane.scheduler.score import DEFAULT, Weights

NAME = "default-scheduler"
EXTENDER_SECONDS = 5.0  # for one answer of an extender: upstream's default
SCORERS = {"TaintToleration": "taints", "NodeAffinity": "affinity", "PodTopologySpread": "spread",
           "InterPodAffinity": "neighbours", "NodeResourcesFit": "least",
           "NodeResourcesBalancedAllocation": "balanced", "ImageLocality": "images"}
MIX = "only score plugins can be switched: filters and everything else are always on"
Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Profile:
    """How the pods that name it are scheduled. `family`: spread pods of a Service or workload by default."""

    name: str = NAME
    weights: Weights = DEFAULT
    family: bool = True
    affinity: Document | None = None  # required of every pod of the profile


@dataclass(frozen=True, slots=True)
class Extender:
    """A web service that has a say. Verbs are the last part of its address, "" = not asked."""

    url: str
    filter: str = ""
    prioritize: str = ""
    bind: str = ""
    preempt: str = ""
    weight: int = 1
    seconds: float = EXTENDER_SECONDS
    names_only: bool = False  # nodeCacheCapable: it knows the nodes, names will do
    ignorable: bool = False
    resources: frozenset[str] = frozenset()  # asked only for pods that request one of them; empty: for all
    tls: Document = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    profiles: Mapping[str, Profile] = field(default_factory=lambda: {NAME: Profile()})
    backoff_first: float = BACKOFF_FIRST
    backoff_most: float = BACKOFF_MOST
    extenders: tuple[Extender, ...] = ()


def parse(document: Document) -> Configuration:
    """The configuration a decoded file stands for. Raises Finding."""
    if document.get("kind") != "KubeSchedulerConfiguration" or \
            document.get("apiVersion") != "kubescheduler.config.k8s.io/v1":
        raise Finding("this is no KubeSchedulerConfiguration of kubescheduler.config.k8s.io/v1",
                      f"it says {document.get('apiVersion')} {document.get('kind')}")
    profiles: list[Profile] = [_profile(p) for p in document.get("profiles") or [{}]]
    names = [p.name for p in profiles]
    if len(set(names)) != len(names):
        raise Finding("two profiles have one schedulerName", ", ".join(sorted(names)), "give each its own")
    first, most = document.get("podInitialBackoffSeconds"), document.get("podMaxBackoffSeconds")
    return Configuration({p.name: p for p in profiles}, float(first or BACKOFF_FIRST), float(most or BACKOFF_MOST),
                         tuple(_extender(e) for e in document.get("extenders") or ()))


def _profile(given: Document) -> Profile:
    profile = Profile(given.get("schedulerName") or NAME)
    plugins = given.get("plugins") or {}
    chosen = {field: getattr(DEFAULT, field) for field in SCORERS.values()}
    for point, sets in plugins.items():
        if point not in ("score", "multiPoint"):
            raise Finding(f"plugins.{point} cannot be configured", MIX)
        for one in sets.get("disabled") or ():
            if one["name"] != "*" and one["name"] not in SCORERS:
                raise Finding(f"the plugin {one['name']} cannot be disabled", MIX)
            for name, scorer in SCORERS.items():
                chosen[scorer] = 0 if one["name"] in ("*", name) else chosen[scorer]
        for one in sets.get("enabled") or ():
            if one["name"] not in SCORERS:
                raise Finding(f"there is no score plugin {one['name']}", f"known: {', '.join(sorted(SCORERS))}")
            chosen[SCORERS[one["name"]]] = one.get("weight") or 1
    profile = replace(profile, weights=Weights(**chosen))
    for entry in given.get("pluginConfig") or ():
        profile = _arguments(profile, entry["name"], entry.get("args") or {})
    return profile


def _arguments(profile: Profile, plugin: str, arguments: Document) -> Profile:
    if plugin == "NodeResourcesFit":
        kind = (arguments.get("scoringStrategy") or {}).get("type", "LeastAllocated")
        if kind == "MostAllocated":
            return replace(profile, weights=replace(profile.weights, least=0, most=profile.weights.least))
        if kind != "LeastAllocated":
            raise Finding(f"the scoring strategy {kind} is not known", fix="LeastAllocated or MostAllocated")
    elif plugin == "PodTopologySpread":
        if arguments.get("defaultConstraints"):
            raise Finding("defaultConstraints of one's own are not known",
                          fix="take defaultingType: System, or List without any")
        return replace(profile, family=arguments.get("defaultingType", "System") == "System")
    elif plugin == "NodeAffinity":
        return replace(profile, affinity=(arguments.get("addedAffinity") or {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"))
    elif arguments and plugin not in ("DefaultPreemption", "VolumeBinding", *SCORERS):
        raise Finding(f"there is no plugin {plugin} to configure")
    return profile


def _extender(given: Document) -> Extender:
    text = str(given.get("httpTimeout") or f"{EXTENDER_SECONDS}s")
    seconds = float(text[:-2]) / 1000 if text.endswith("ms") else float(text.rstrip("s"))
    return Extender(given["urlPrefix"].rstrip("/"), given.get("filterVerb") or "", given.get("prioritizeVerb") or "",
                    given.get("bindVerb") or "", given.get("preemptVerb") or "", given.get("weight") or 1, seconds,
                    bool(given.get("nodeCacheCapable")), bool(given.get("ignorable")),
                    frozenset(r["name"] for r in given.get("managedResources") or ()), given.get("tlsConfig") or {})
