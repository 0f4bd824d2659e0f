"""What is wrong and what mends it: explainers of single objects, pure functions over plain objects.

Owns the `World` they look into and the registry that finds them by kind. An explainer is `explain(obj, world)` and
gives `Finding`s, the nearest cause first; it reads only what the world lets the asker see and never guesses beyond what
statuses, events and specs say. Called by `why`, which builds the world of one question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from controlplane.machinery.errors import Finding

Object = dict[str, Any]
MAX_FOLLOWED = 3  # objects of a kind that an explanation follows; more of the same seldom tell more


class World(Protocol):
    """What an explainer may ask. Names are those of `resources.named`."""

    now: float  # wall seconds

    def get(self, resource: str, namespace: str, name: str) -> Object | None: ...

    def list(self, resource: str, namespace: str) -> Sequence[Object]:
        """Of one namespace, or of the whole cluster for ""; empty when the asker may not see them."""
        ...

    def counts(self, namespace: str) -> dict[str, int]:
        """How many objects of each resource a namespace holds."""
        ...

    def refusals(self, resource: str, namespace: str, name: str = "") -> Sequence[Object]:
        """Remembered refusals, the newest first; their shape is `refusals.entry`'s."""
        ...


Explain = Callable[[Object, World], Iterable[Finding]]
_BY_KIND: dict[str, list[Explain]] = {}


def explains(*kinds: str) -> Callable[[Explain], Explain]:
    """Register an explainer for kinds; "*" is every kind."""
    def register(explain: Explain) -> Explain:
        for kind in kinds:
            _BY_KIND.setdefault(kind, []).append(explain)
        return explain
    return register


def findings(obj: Object, world: World) -> list[Finding]:
    """Everything known about an object, without repetitions."""
    from controlplane.apiserver.explain import (  # noqa: F401 - they register
        apiservices,
        deletion,
        ingresses,
        pods,
        refusals,
        services,
        workloads,
    )
    found: dict[str, Finding] = {}
    for explain in (*_BY_KIND.get(obj.get("kind", ""), ()), *_BY_KIND.get("*", ())):
        for finding in explain(obj, world):
            found.setdefault(str(finding), finding)
    return list(found.values())


def called(obj: Object) -> str:
    """`pod default/web`, `node n1`."""
    metadata = obj["metadata"]
    place = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj['kind'].lower()} {place}{metadata['name']}"


def target(obj: Object) -> str:
    """The words of a kubectl command that name an object: `pod web -n default`."""
    metadata = obj["metadata"]
    place = f" -n {metadata['namespace']}" if metadata.get("namespace") else ""
    return f"{obj['kind'].lower()} {metadata['name']}{place}"


def warnings_about(obj: Object, world: World, *reasons: str) -> list[Object]:
    """Warning events about an object, the newest first; of some reasons, when given."""
    metadata = obj["metadata"]
    found = [e for e in world.list("events", metadata.get("namespace") or "default")
             if (e.get("involvedObject") or {}).get("uid") == metadata.get("uid")
             and e.get("type") == "Warning" and (not reasons or e.get("reason") in reasons)]
    return sorted(found, key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or "", reverse=True)
