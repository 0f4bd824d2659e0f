"""Rules of roles: what they allow, which of them cover others, how they are told to people.

Owns the matching of one rule against one question and the comparison of sets of rules. Pure; it knows no objects but
the PolicyRule's form, and nothing of bindings, which the apiserver's `rbac` resolves. Called by it, by the node
authorizer, by the check against escalation and by the defaults.

Upstream: k8s.io/component-helpers/auth/rbac/validation and k8s.io/kubernetes/pkg/apis/rbac/v1/evaluation_helpers.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

ALL = "*"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a role allows. `urls` is set for non-resource rules, the other lists for resource rules."""

    verbs: tuple[str, ...]
    groups: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()

    def concerns(self, verb: str, group: str, plural: str, subresource: str = "") -> bool:
        """Whether it speaks of the verb and resource, whatever the object's name."""
        if not (ALL in self.verbs or verb in self.verbs) or not (ALL in self.groups or group in self.groups):
            return False
        if not subresource:
            return ALL in self.resources or plural in self.resources
        return any(r in self.resources for r in (ALL, f"{plural}/{subresource}", f"*/{subresource}"))

    def allows(self, verb: str, group: str, plural: str, subresource: str, name: str) -> bool:
        return self.concerns(verb, group, plural, subresource) and (not self.names or name in self.names)

    def allows_path(self, verb: str, path: str) -> bool:
        return (ALL in self.verbs or verb in self.verbs) and any(_url_covers(url, path) for url in self.urls)

    def covers(self, atom: Rule) -> bool:
        """Whether whoever holds this holds all of `atom`."""
        if not _all_in(atom.verbs, self.verbs):
            return False
        if atom.urls:
            return all(any(_url_covers(own, url) for own in self.urls) for url in atom.urls)
        if not _all_in(atom.groups, self.groups):
            return False
        if self.names and not (atom.names and set(atom.names) <= set(self.names)):
            return False
        return ALL in self.resources or all(_resource_in(r, self.resources) for r in atom.resources)

    def as_dict(self) -> dict[str, Any]:
        """As roles and SubjectRulesReviewStatus write it."""
        fields = (("verbs", self.verbs), ("apiGroups", self.groups), ("resources", self.resources),
                  ("resourceNames", self.names), ("nonResourceURLs", self.urls))
        return {field: list(values) for field, values in fields if values}

    def __str__(self) -> str:
        """As upstream's messages write it: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`."""
        fields = (("APIGroups", self.groups), ("Resources", self.resources), ("NonResourceURLs", self.urls),
                  ("ResourceNames", self.names), ("Verbs", self.verbs))
        return "{" + ", ".join(f"{field}:{quoted(values)}" for field, values in fields if values) + "}"


def quoted(values: Iterable[str]) -> str:
    """A list of strings as Go's %q prints it."""
    return "[" + " ".join(f'"{v}"' for v in values) + "]"


def _url_covers(own: str, path: str) -> bool:
    return own in (ALL, path) or (own.endswith(ALL) and path.startswith(own.rstrip(ALL)))


def _all_in(wanted: tuple[str, ...], own: tuple[str, ...]) -> bool:
    return ALL in own or set(wanted) <= set(own)


def _resource_in(resource: str, own: tuple[str, ...]) -> bool:
    _, slash, subresource = resource.partition("/")
    return resource in own or bool(slash and f"*/{subresource}" in own)


def of_dict(rule: dict[str, Any]) -> Rule:
    """A PolicyRule of an object."""
    return Rule(tuple(rule.get("verbs") or ()), tuple(rule.get("apiGroups") or ()), tuple(rule.get("resources") or ()),
                tuple(rule.get("resourceNames") or ()), tuple(rule.get("nonResourceURLs") or ()))


def of_role(role: dict[str, Any]) -> tuple[Rule, ...]:
    """The rules of a Role or ClusterRole."""
    return tuple(of_dict(rule) for rule in role.get("rules") or ())


def atoms(rule: Rule) -> Iterator[Rule]:
    """The rule in parts of one verb, one resource or URL, and at most one name each."""
    for verb, url in product(rule.verbs, rule.urls):
        yield Rule((verb,), urls=(url,))
    for group, resource, verb in product(rule.groups, rule.resources, rule.verbs):
        for names in ((n,) for n in rule.names) if rule.names else ((),):
            yield Rule((verb,), (group,), (resource,), names)


def missing(own: Iterable[Rule], wanted: Iterable[Rule]) -> list[Rule]:
    """The atoms of `wanted` that no rule of `own` covers."""
    held = list(own)
    return [atom for rule in wanted for atom in atoms(rule) if not any(rule.covers(atom) for rule in held)]


def compact(rules: Iterable[Rule]) -> list[Rule]:
    """The same rules with the verbs of one resource (and name) in one rule, in the order they came."""
    made: dict[Any, Rule] = {}
    for position, rule in enumerate(rules):
        simple = len(rule.groups) == 1 and len(rule.resources) == 1 and len(rule.names) <= 1 and not rule.urls
        place = (rule.groups, rule.resources, rule.names) if simple else position
        known = made.get(place)
        made[place] = rule if known is None else replace(known, verbs=tuple(dict.fromkeys(known.verbs + rule.verbs)))
    return list(made.values())


def parse(line: str) -> Rule:
    """A rule in the notation of the defaults: `verbs [groups] resources names=…` or `verbs URL paths`."""
    verbs, where, *what = line.split()
    words = tuple(w for w in what if not w.startswith("names="))
    if where == "URL":
        return Rule(tuple(verbs.split(",")), urls=words)
    groups = tuple("" if g == "core" else g for g in where.strip("[]").split(","))
    names = tuple(n for w in what if w.startswith("names=") for n in w[6:].split(","))
    return Rule(tuple(verbs.split(",")), groups, words, names)
