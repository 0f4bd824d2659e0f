"""Which nodes a pod is meant for: node selectors and node affinity, taints and tolerations.

Pure. Whoever asks hands in a node as anything with a name and labels. Called by the scheduler and by the controllers
that count on where a pod may run; it says nothing about room.

Upstream: k8s.io/component-helpers/scheduling/corev1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

HARD = ("NoSchedule", "NoExecute")  # effects that keep a pod away

Part = Mapping[str, Any]  # of an object


class Node(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...


class Named(NamedTuple):
    """A node as far as it is asked for here."""

    name: str
    labels: Mapping[str, str]


# --- taints ------------------------------------------------------------------------------------------------------

def tolerates(toleration: Part, taint: Part) -> bool:
    """Whether one toleration covers one taint. An empty key with Exists covers all, an empty effect every effect."""
    if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
        return False
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    if key and key != taint.get("key"):
        return False
    if operator == "Exists":
        return True
    if operator == "Equal":
        return bool(key) and (toleration.get("value") or "") == (taint.get("value") or "")
    try:
        limit, have = int(toleration.get("value") or ""), int(taint.get("value") or "")
    except ValueError:
        return False
    return have > limit if operator == "Gt" else operator == "Lt" and have < limit


def untolerated(tolerations: Sequence[Part], taints: Iterable[Part], effects: tuple[str, ...] = HARD) -> Part | None:
    """The first taint of the given effects that no toleration covers."""
    for taint in taints:
        if taint.get("effect") in effects and not any(tolerates(one, taint) for one in tolerations):
            return taint
    return None


# --- node affinity -----------------------------------------------------------------------------------------------

def selects(labels: Mapping[str, str], terms: Iterable[Part] | None, node: Node) -> bool:
    """Whether the node has a pod's `nodeSelector` and, unless None, satisfies one term of its required affinity."""
    return all(node.labels.get(key) == value for key, value in labels.items()) and (
        terms is None or any(term_matches(term, node) for term in terms))


def takes(selector: Part | None, node: Node) -> bool:
    """Whether a core/v1 NodeSelector takes the node; without one none does."""
    return any(term_matches(term, node) for term in (selector or {}).get("nodeSelectorTerms") or ())


def term_matches(term: Part, node: Node) -> bool:
    """One node selector term: all its expressions must hold; an empty term matches nothing."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    named = {"metadata.name": node.name}
    return all(_holds(one, node.labels) for one in expressions) and all(_holds(one, named) for one in fields)


def _holds(requirement: Part, values: Mapping[str, str]) -> bool:
    key, operator, wanted = requirement.get("key", ""), requirement.get("operator"), requirement.get("values") or []
    if operator == "Exists":
        return key in values
    if operator == "DoesNotExist":
        return key not in values
    if operator == "In":
        return values.get(key) in wanted
    if operator == "NotIn":
        return values.get(key) not in wanted
    try:
        have, limit = int(values[key]), int(wanted[0])
    except (KeyError, ValueError, IndexError):
        return False
    return have > limit if operator == "Gt" else operator == "Lt" and have < limit
