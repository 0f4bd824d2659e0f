"""Roles and bindings as they are stored, resolved for whoever asks.

Owns an index of the bindings by subject and the rules of roles, kept current by the watch cache itself: a change holds
from the moment its write is answered. Promises that a question costs two look-ups once its like was asked (what a user
holds is resolved once per namespace, what it says of a verb and resource once more), that the memory of both is
bounded, and that any change of a role or binding forgets it all. Never writes. Called by `authz` for each request and
by the check against escalation.

Upstream: k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac and pkg/registry/rbac/validation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from controlplane.machinery import rbac
from controlplane.machinery.rbac import Rule
from controlplane.store.cache import Cache, key_of, prefix_of

if TYPE_CHECKING:
    from controlplane.apiserver.authentication.user import User
    from controlplane.apiserver.authorization.access import Attributes
    from controlplane.store.item import Event

ROLES, CLUSTER_ROLES, BINDINGS, CLUSTER_BINDINGS = (
    f"{plural}.rbac.authorization.k8s.io" for plural in ("roles", "clusterroles", "rolebindings",
                                                         "clusterrolebindings"))
MAX_HOLDERS = 1024  # users (per namespace) whose grants are kept: some 2 kB each
MAX_QUESTIONS = 512  # kinds of questions remembered of one user: more than there are verbs and resources in use
Object = dict[str, Any]
Grant = tuple[Rule, str]  # a rule and the words that tell why it is held


class Grants:
    """What one user holds in one namespace (or of the cluster, when that is ""), and why."""

    def __init__(self, held: list[Grant], faults: list[str]) -> None:
        self.held = held
        self.faults = faults
        self._known: dict[tuple[str, ...], tuple[str, list[tuple[tuple[str, ...], str]]]] = {}

    def why(self, a: Attributes) -> str:
        """The words that allow it, "" when no rule does."""
        question = (a.verb, a.group, a.plural, a.subresource) if a.plural else (a.verb, a.path)
        known = self._known.get(question)
        if known is None:
            if len(self._known) >= MAX_QUESTIONS:
                self._known.clear()
            known = self._known[question] = self._answer(a)
        always, named = known
        if always or not named:
            return always
        name = a.object_name
        return next((why for names, why in named if name in names), "") if name else ""

    def _answer(self, a: Attributes) -> tuple[str, list[tuple[tuple[str, ...], str]]]:
        """Why it is allowed for any name, and else the names it is allowed for."""
        if not a.plural:
            return next((why for rule, why in self.held if rule.allows_path(a.verb, a.path)), ""), []
        found = [(rule, why) for rule, why in self.held if rule.concerns(a.verb, a.group, a.plural, a.subresource)]
        return (next((why for rule, why in found if not rule.names), ""),
                [(rule.names, why) for rule, why in found if rule.names])


class RoleBook:
    """The index. It is filled at the first question."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._filled = False
        self._rules: dict[str, tuple[Rule, ...]] = {}  # by the role's key; filled as roles are asked for
        self._holders: dict[str, dict[str, str]] = {}  # subject -> binding's key -> the words for that subject
        self._subjects: dict[str, list[str]] = {}  # binding's key -> its subjects
        self._grants: dict[tuple[str, tuple[str, ...], str], Grants] = {}

    # --- keeping current ---------------------------------------------------------------------------------------

    def _fill(self) -> None:
        self._filled = True
        for resource in (ROLES, CLUSTER_ROLES):
            self._cache.observe(prefix_of(resource), self._role_changed)
        for resource in (CLUSTER_BINDINGS, BINDINGS):
            self._cache.observe(prefix_of(resource), self._binding_changed)
            for item in self._cache.list(prefix_of(resource)):
                self._enter(item.key, item.obj)

    def _role_changed(self, event: Event) -> None:
        self._rules.pop(event.item.key, None)
        self._grants.clear()

    def _binding_changed(self, event: Event) -> None:
        key = event.item.key
        for subject in self._subjects.pop(key, ()):
            holders = self._holders[subject]
            del holders[key]
            if not holders:
                del self._holders[subject]
        if event.kind != "DELETED":
            self._enter(key, event.item.obj)
        self._grants.clear()

    def _enter(self, key: str, binding: Object) -> None:
        namespace = binding["metadata"].get("namespace", "")
        described = dict(_subject(s, namespace) for s in binding.get("subjects") or ())
        self._subjects[key] = list(described)
        for subject, words in described.items():
            self._holders.setdefault(subject, {})[key] = words

    # --- asking ------------------------------------------------------------------------------------------------

    def grants(self, user: User, namespace: str) -> Grants:
        """What `user` holds in `namespace`, "" for the cluster alone."""
        if not self._filled:
            self._fill()
        asked = (user.name, user.groups, namespace)
        found = self._grants.get(asked)
        if found is None:
            if len(self._grants) >= MAX_HOLDERS:
                self._grants.clear()
            found = self._grants[asked] = self._resolve(user, namespace)
        return found

    def _resolve(self, user: User, namespace: str) -> Grants:
        held: list[Grant] = []
        faults: dict[str, None] = {}
        for resource, place in ((CLUSTER_BINDINGS, ""), (BINDINGS, namespace)):
            if resource == BINDINGS and not namespace:
                continue
            for key, words in self._held_by(user, prefix_of(resource, place)):
                item = self._cache.get(key)
                if item is None:
                    continue
                role, name = item.obj["roleRef"], item.obj["metadata"]["name"]
                rules = self.rules(role, place)
                if rules is None:
                    faults[f'{role["kind"].lower()}.rbac.authorization.k8s.io "{role["name"]}" not found'] = None
                    continue
                binding = f'RoleBinding "{name}/{place}"' if place else f'ClusterRoleBinding "{name}"'
                why = f'RBAC: allowed by {binding} of {role["kind"]} "{role["name"]}" to {words}'
                held += [(rule, why) for rule in rules]
        return Grants(held, list(faults))

    def _held_by(self, user: User, prefix: str) -> Iterator[tuple[str, str]]:
        """Keys of the bindings that name the user or one of its groups, each once, and the words for that subject."""
        seen: set[str] = set()
        for subject in (f"User:{user.name}", *(f"Group:{group}" for group in user.groups)):
            for key, words in self._holders.get(subject, {}).items():
                if key.startswith(prefix) and key not in seen:
                    seen.add(key)
                    yield key, words

    def rules(self, role: Object, namespace: str) -> tuple[Rule, ...] | None:
        """The rules of the role a `roleRef` names, None when it does not exist."""
        if role["kind"] == "ClusterRole":
            key = key_of(CLUSTER_ROLES, "", role["name"])
        else:
            key = key_of(ROLES, namespace, role["name"])
        found = self._rules.get(key)
        if found is None and (item := self._cache.get(key)) is not None:
            found = self._rules[key] = rbac.of_role(item.obj)
        return found


def _subject(subject: Object, namespace: str) -> tuple[str, str]:
    """How the index calls a binding's subject, and how messages do."""
    kind, name = subject.get("kind", ""), subject.get("name", "")
    if kind != "ServiceAccount":
        return f"{kind}:{name}", f'{kind} "{name}"'
    place = subject.get("namespace") or namespace
    return f"User:system:serviceaccount:{place}:{name}", f'ServiceAccount "{name}/{place}"'
