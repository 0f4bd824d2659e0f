"""The admission chain: what may still change or refuse an object once its sender is allowed to write.

Owns the attributes a plugin sees, its interface and how a chain of plugins is asked; `chain` says which there are.
A mutating pass runs before validation and a validating pass after it, always in the same order and always both for a
dry run; a plugin must not keep anything for a request: a refused write leaves no trace. Called by the verbs that
write.

Upstream: k8s.io/apiserver/pkg/admission; the order of 1.36.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.apiserver.writing import bodies
from controlplane.machinery import objects, strategy
from controlplane.machinery.errors import Forbidden, InternalError
from controlplane.machinery.resources import Resource

CREATE, UPDATE, DELETE, CONNECT = "CREATE", "UPDATE", "DELETE", "CONNECT"


@dataclass(slots=True, eq=False)
class Attributes:
    """One write. `obj` is the new object (None on DELETE) and may be changed by `mutate`; `old` is the stored one."""

    operation: str
    resource: Resource
    namespace: str
    name: str
    subresource: str = ""
    obj: dict[str, Any] | None = None
    old: dict[str, Any] | None = None
    user: Any = None
    dry_run: bool = False
    warnings: list[str] = field(default_factory=list)
    request: Request | None = None
    round: int = 0  # 1 in the second mutating pass, which follows when a webhook or policy changed the object
    changed: bool = False  # by a webhook or policy, in this pass
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)  # the object as each of them left it
    views: dict[str, tuple[Any, Any]] = field(default_factory=dict)  # object and old one in other versions

    def note(self, key: str, value: str) -> None:
        """Annotate the audit event of the request."""
        if self.request is not None:
            if self.request.annotations is None:
                self.request.annotations = {}
            self.request.annotations[key] = value

    def warn(self, text: str) -> None:
        """Tell the client something beside the answer, once."""
        if text not in self.warnings:
            self.warnings.append(text)

    def remember(self, key: str) -> None:
        """Keep the object as it is now, for whoever `key` names."""
        self.seen[key] = objects.deep_copy(self.obj)

    def replace(self, made: dict[str, Any], by: str) -> None:
        """Take over the object as a webhook or policy made it, in its type's form. Raises InternalError.

        Of a scale only the replicas count; what names an object stays."""
        assert self.obj is not None
        if self.subresource == "scale":
            made = {**self.obj, "spec": {**(self.obj.get("spec") or {}),
                                         "replicas": (made.get("spec") or {}).get("replicas") or 0}}
        kept = {name: self.obj["metadata"][name] for name in ("name", "namespace", "uid")
                if name in self.obj["metadata"]}
        made = {**made, "apiVersion": self.obj["apiVersion"], "kind": self.obj["kind"],
                "metadata": {**made["metadata"], **kept}}
        if self.subresource in ("", "scale", "status", "ephemeralcontainers", "resize"):
            faults = bodies.prune(self.resource, made)
            if faults:
                raise InternalError.of(f"{by} left an object that cannot be read: {faults[0]}")
            strategy.of(self.resource).default(made)
        if made != self.obj:
            self.obj.clear()
            self.obj.update(made)
            self.changed = True

    def forbidden(self, why: str) -> Forbidden:
        return Forbidden.of(self.resource.plural, self.name, why, self.resource.group)

    def concerns(self, name: str, *operations: str, subresource: str = "") -> bool:
        """Whether this is one of the operations on the resource `name` itself, or on the given subresource."""
        return self.operation in operations and self.resource.name == name and self.subresource == subresource


def of_request(request: Request, resource: Resource, operation: str, name: str, obj: dict[str, Any] | None,
               old: dict[str, Any] | None, dry_run: bool) -> Attributes:
    return Attributes(operation, resource, request.namespace, name, request.subresource, obj, old, request.user,
                      dry_run, request.warnings, request)


class Plugin:
    """One rule. Both methods raise ApiError to refuse; `mutate` may change `attributes.obj` in place."""

    def __init__(self, context: Context) -> None:
        self.context = context

    async def mutate(self, attributes: Attributes) -> None:
        """Complete the object."""

    async def validate(self, attributes: Attributes) -> None:
        """Refuse what must not be stored."""

    async def close(self) -> None:
        """Let go of connections."""


class Chain:
    """All plugins in their order; each is asked only in the passes it takes part in."""

    def __init__(self, plugins: Sequence[Plugin]) -> None:
        self.plugins = list(plugins)
        self._mutating = [p.mutate for p in self.plugins if type(p).mutate is not Plugin.mutate]
        self._validating = [p.validate for p in self.plugins if type(p).validate is not Plugin.validate]

    async def mutate(self, attributes: Attributes) -> None:
        for step in self._mutating:
            await step(attributes)
        if attributes.changed:  # from outside: what completes objects looks again, once
            attributes.changed, attributes.round = False, 1
            for step in self._mutating:
                await step(attributes)

    async def validate(self, attributes: Attributes) -> None:
        for step in self._validating:
            await step(attributes)

    async def close(self) -> None:
        for plugin in self.plugins:
            await plugin.close()
