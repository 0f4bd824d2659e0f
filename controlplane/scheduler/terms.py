"""What a pod asks of other pods: affinity and anti-affinity terms, and how evenly it wants to be spread. Pure.

Owns the reading of `spec.affinity.podAffinity`, `.podAntiAffinity` and `spec.topologySpreadConstraints` into immutable,
hashable values with selectors ready to use, matchLabelKeys and mismatchLabelKeys merged in. Pods of one template share
one parsed value. Called by `fit` for the pod to be placed and by `snapshot` for those that run.

Upstream: pkg/scheduler/framework (AffinityTerm) and plugins/podtopologyspread/common.go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import orjson

from controlplane.machinery import selectors
from controlplane.machinery.selectors import LabelSelector, Requirement

_REMEMBERED = 1024  # parsed affinities kept: one per template, and per pod only where labels differ that they name
HOSTNAME, ZONE = "kubernetes.io/hostname", "topology.kubernetes.io/zone"
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"

Labels = Mapping[str, str]
Namespaces = Mapping[str, Labels]  # the labels of each namespace


@dataclass(frozen=True, slots=True)
class Term:
    """Pods of `namespaces`, or of namespaces that `everywhere` matches, in the same domain of `key`."""

    key: str
    selector: LabelSelector
    namespaces: frozenset[str]
    everywhere: LabelSelector | None
    weight: int = 0

    def covers(self, namespace: str, labels: Labels, known: Namespaces) -> bool:
        if namespace not in self.namespaces and (
                self.everywhere is None or not self.everywhere.matches(known.get(namespace, {}))):
            return False
        return self.selector.matches(labels)


@dataclass(frozen=True, slots=True)
class Affinities:
    """The terms of one pod; `wishes` carry weights, those of anti-affinity negative ones; of `near` the weight is how
    often the pod says so."""

    near: tuple[Term, ...] = ()
    apart: tuple[Term, ...] = ()
    wishes: tuple[Term, ...] = ()


@dataclass(frozen=True, slots=True)
class Spread:
    """One topology spread constraint. `own`: the pod counts itself. `defaulted`: nobody wrote it."""

    key: str
    skew: int
    selector: LabelSelector
    own: bool
    min_domains: int = 1
    honour_affinity: bool = True
    honour_taints: bool = False
    defaulted: bool = False


NONE = Affinities()


def affinities(pod: Mapping[str, Any]) -> Affinities:
    """The pod's terms about other pods."""
    affinity = (pod.get("spec") or {}).get("affinity") or {}
    if not affinity.get("podAffinity") and not affinity.get("podAntiAffinity"):
        return NONE
    raw = orjson.dumps([affinity.get("podAffinity"), affinity.get("podAntiAffinity")], option=orjson.OPT_SORT_KEYS)
    metadata = pod["metadata"]
    named = tuple(sorted((metadata.get("labels") or {}).items())) if b"atchLabelKeys" in raw else ()
    return _affinities(raw, metadata.get("namespace", ""), named)


@lru_cache(_REMEMBERED)
def _affinities(raw: bytes, namespace: str, labels: tuple[tuple[str, str], ...]) -> Affinities:
    near, apart = (part or {} for part in orjson.loads(raw))
    own = dict(labels)
    wishes = [_term(w["podAffinityTerm"], namespace, own, w["weight"]) for w in near.get(PREFERRED) or ()]
    wishes += [_term(w["podAffinityTerm"], namespace, own, -w["weight"]) for w in apart.get(PREFERRED) or ()]
    return Affinities(_folded(_term(t, namespace, own, 1) for t in near.get(REQUIRED) or ()),
                      tuple(_term(t, namespace, own) for t in apart.get(REQUIRED) or ()), _folded(wishes))


def _folded(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Each term once, with the weights of those like it: who counts pods by term would else miss the second."""
    weights: Counter[Term] = Counter()
    for term in terms:
        weights[replace(term, weight=0)] += term.weight
    return tuple(replace(term, weight=weight) for term, weight in weights.items())


def _term(term: Mapping[str, Any], namespace: str, labels: Labels, weight: int = 0) -> Term:
    everywhere = term.get("namespaceSelector")
    names = frozenset(term.get("namespaces") or (() if everywhere is not None else (namespace,)))
    selector = _merged(term.get("labelSelector"), labels, term.get("matchLabelKeys") or (), "in")
    if mismatched := term.get("mismatchLabelKeys"):
        selector = _more(selector, labels, mismatched, "notin")
    return Term(term.get("topologyKey", ""), selector, names,
                None if everywhere is None else selectors.from_label_selector(everywhere), weight)


def _merged(selector: Mapping[str, Any] | None, labels: Labels, keys: Iterable[str], operator: str) -> LabelSelector:
    return _more(selectors.from_label_selector(selector), labels, keys, operator)


def _more(selector: LabelSelector, labels: Labels, keys: Iterable[str], operator: str) -> LabelSelector:
    """The selector, narrowed to pods that have (or have not) this pod's values of `keys`; keys it lacks are ignored."""
    added = tuple(Requirement(key, operator, (labels[key],)) for key in keys if key in labels)
    added = tuple(r for r in added if r not in selector.requirements)
    return selector if selector.nothing or not added else LabelSelector((*selector.requirements, *added))


def spreads(pod: Mapping[str, Any], when: str) -> tuple[Spread, ...]:
    """The pod's own constraints with `whenUnsatisfiable: when`."""
    labels = pod["metadata"].get("labels") or {}
    found = []
    for one in (pod.get("spec") or {}).get("topologySpreadConstraints") or ():
        if (one.get("whenUnsatisfiable") or "DoNotSchedule") != when:
            continue
        selector = _merged(one.get("labelSelector"), labels, one.get("matchLabelKeys") or (), "in")
        found.append(Spread(one.get("topologyKey", ""), one.get("maxSkew", 1), selector, selector.matches(labels),
                            one.get("minDomains") or 1, one.get("nodeAffinityPolicy", "Honor") == "Honor",
                            one.get("nodeTaintsPolicy", "Ignore") == "Honor"))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class DefaultSpread:
    """A constraint for pods of a Service or workload that have none of their own."""

    key: str
    skew: int
    hard: bool = False
    system: bool = False  # one of upstream's own, which take nodes without the label, too


SYSTEM_SPREADS = (DefaultSpread(HOSTNAME, 3, system=True), DefaultSpread(ZONE, 5, system=True))


def default_spreads(wanted: Iterable[DefaultSpread], selector: LabelSelector, labels: Labels) -> tuple[Spread, ...]:
    """The constraints for pods that `selector` finds."""
    own = selector.matches(labels)
    return tuple(Spread(one.key, one.skew, selector, own, defaulted=one.system) for one in wanted)
