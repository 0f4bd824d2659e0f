"""The server's authorizer as CEL expressions know it.

Owns the translation of a question gathered in an expression to the authorizer's own form. Called by whoever evaluates
expressions of admission.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.authorization import access
from controlplane.machinery.cel import authorizer

if TYPE_CHECKING:
    from controlplane.apiserver.admission import Attributes
    from controlplane.apiserver.context import Context


def of(context: Context, attributes: Attributes) -> Any:
    """The value of `authorizer` in a request's expressions."""
    user, resource = attributes.user, attributes.resource
    made = authorizer.start(name=user.name, uid=user.uid or "", groups=list(user.groups))
    about = authorizer.resource(made, group=resource.group, resource=resource.plural, name=attributes.name,
                                   subresource=attributes.subresource, namespace=attributes.namespace)
    return {**made, "requestResource": about}


def asking(context: Context) -> AbstractContextManager[None]:
    """A block in which questions of expressions are answered."""
    def answer(asked: dict[str, Any]) -> tuple[bool, str]:
        if context.authorizer is None:
            return True, ""
        who = asked["user"]
        user = User(who["name"], who.get("uid", ""), tuple(who.get("groups") or ()))
        if "path" in asked:
            question = access.Attributes(user, asked["verb"], path=asked["path"])
        else:
            question = access.Attributes(user, asked["verb"], asked.get("group", ""), "*", asked.get("resource", ""),
                                        asked.get("subresource", ""), asked.get("namespace", ""),
                                        asked.get("name", ""), fields=asked.get("fields", ""))
        decision = context.authorizer.decide(question)
        return bool(decision.allowed), decision.reason
    return authorizer.asking(answer)
