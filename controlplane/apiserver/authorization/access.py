"""What is asked of the authorizers, and what they answer.

Owns the form of the question, how a request becomes one, and upstream's wording of a refusal. It decides nothing.
Called by everything that asks: the pipeline, access reviews, plugins, policies.
"""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.request import Request
from controlplane.machinery.errors import ApiError, Forbidden
from controlplane.machinery.selectors import parse_fields


@dataclass(frozen=True, slots=True)
class Attributes:
    """The question. `plural` "" asks about the non-resource `path`. `fields` is the field selector of a list, watch or
    deletecollection, as text: rules about single objects hold for a list narrowed to them."""

    user: User
    verb: str
    group: str = ""
    version: str = ""
    plural: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""
    fields: str = ""

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural

    def exact(self, field: str) -> str:
        """The value a field selector pins `field` to, "" when it does not."""
        if not self.fields:
            return ""
        try:
            return parse_fields(self.fields).exact(field) or ""
        except ApiError:
            return ""  # the handler answers 400; until then nothing is pinned

    @property
    def object_name(self) -> str:
        """The one object asked for: by name, or by a selector on metadata.name."""
        return self.name or self.exact("metadata.name")


@dataclass(frozen=True, slots=True)
class Decision:
    allowed: bool
    reason: str = ""


def attributes_of(request: Request) -> Attributes:
    """The question a request asks. Its user must be set."""
    if not request.is_resource:
        return Attributes(request.user, request.verb, path=request.path)
    where = request.target
    return Attributes(request.user, request.verb, where.group, where.version, where.plural, request.subresource,
                      request.namespace, request.name, request.path,
                      request.query.get("fieldSelector") if not request.name and request.raw_query else "")


def refusal(attributes: Attributes, reason: str = "") -> Forbidden:
    """The 403, worded as upstream words it."""
    a = attributes
    tail = f": {reason}" if reason else ""
    if not a.plural:
        return Forbidden(f'forbidden: User "{a.user.name}" cannot {a.verb} path "{a.path}"{tail}', {})
    where = f'in the namespace "{a.namespace}"' if a.namespace else "at the cluster scope"
    return Forbidden.of(a.plural, a.name, f'User "{a.user.name}" cannot {a.verb} resource "{a.resource}" in API group '
                        f'"{a.group}" {where}{tail}', a.group)
