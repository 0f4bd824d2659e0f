"""Questions clients ask about access: token reviews, access reviews, and who they are themselves.

Owns the answers' form. The answers come from `authn` and `authz`, by the same functions that serve requests, so a
review never differs from what would happen. Nothing is stored. Called by the handlers for a create of a review and of
`serviceaccounts/token`.

Upstream: k8s.io/kubernetes/pkg/registry/{authentication,authorization}.
"""

from __future__ import annotations

from typing import Any

from controlplane.apiserver.authentication.authn import Authenticator
from controlplane.apiserver.authentication.user import User
from controlplane.apiserver.authorization.access import Attributes
from controlplane.apiserver.authorization.authz import Authorizer
from controlplane.apiserver.context import Context
from controlplane.apiserver.request import Request
from controlplane.machinery.errors import BadRequest, Forbidden, Invalid, NotFound, invalid, required

AUTHORIZATION = "authorization.k8s.io"
Object = dict[str, Any]


class Reviews:
    """`authenticator` may be given; else one is made from the context at the first token review."""

    def __init__(self, context: Context, authenticator: Authenticator | None = None) -> None:
        self._context = context
        self._authenticator = authenticator

    @property
    def _authn(self) -> Authenticator:
        if self._authenticator is None:
            self._authenticator = Authenticator(self._context)
        return self._authenticator

    @property
    def _authz(self) -> Authorizer:
        authorizer: Authorizer = self._context.authorizer
        return authorizer

    def handle(self, request: Request, obj: Object) -> Object:
        """The reviewed object: `obj` with its status. Raises ApiErrors for a question that is none."""
        kind = request.resource.kind if request.resource is not None else obj.get("kind", "")
        spec = obj.get("spec") or {}
        match kind:
            case "TokenReview":
                status = self._token_review(spec)
            case "SelfSubjectReview":
                status = {"userInfo": request.user.as_info()}
            case "SelfSubjectRulesReview":
                status = self._rules(request.user, spec)
            case "SelfSubjectAccessReview":
                status = self._access(request.user, kind, spec)
            case "SubjectAccessReview":
                status = self._access(_subject(kind, spec), kind, spec)
            case "LocalSubjectAccessReview":
                asked = (spec.get("resourceAttributes") or {}).get("namespace")
                if asked != request.namespace:
                    raise Invalid.of(kind, "", [invalid("spec.resourceAttributes.namespace", asked or "",
                                     "must match metadata.namespace")], AUTHORIZATION)
                status = self._access(_subject(kind, spec), kind, spec)
            case _:
                raise NotFound.path()
        return {"kind": kind, "apiVersion": obj.get("apiVersion") or _api_version(request),
                "metadata": obj.get("metadata") or {}, **({"spec": spec} if kind != "SelfSubjectReview" else {}),
                "status": status}

    def token(self, request: Request, service_account: Object, obj: Object) -> Object:
        """Answer a TokenRequest for `service_account`."""
        tokens = self._authn.tokens
        if tokens is None:
            raise Forbidden.of("serviceaccounts/token", request.name, "this server has no service-account signing key")
        if self._context.authorizer is not None:
            self._authz.admit_node(request, obj, service_account)  # a node's tokens are bound to its pods
        return tokens.request(request.namespace, service_account, obj)

    def _token_review(self, spec: Object) -> Object:
        text = spec.get("token")
        if not text:
            raise BadRequest("token is required for TokenReview in authentication")
        found = self._authn.token(text, list(spec.get("audiences") or ()))
        if found is None:
            return {"user": {}, "error": "invalid bearer token"}
        user, audiences = found
        tokens = self._authn.tokens
        return {"authenticated": True, "user": user.as_info(),
                "audiences": audiences or ([tokens.issuer] if tokens is not None else [])}

    def _access(self, user: User, kind: str, spec: Object) -> Object:
        resource, path = spec.get("resourceAttributes"), spec.get("nonResourceAttributes")
        if bool(resource) == bool(path):
            why = ("exactly one of nonResourceAttributes or resourceAttributes must be specified" if not resource
                   else "cannot be specified in combination with resourceAttributes")
            field = "spec.resourceAttributes" if not resource else "spec.nonResourceAttributes"
            raise Invalid.of(kind, "", [invalid(field, "", why)], AUTHORIZATION)
        if path:
            asked = Attributes(user, path.get("verb", ""), path=path.get("path", ""))
        else:
            asked = _resource_attributes(user, resource or {})
        decision = self._authz.decide(asked)
        status: Object = {"allowed": decision.allowed}
        return status | ({"reason": decision.reason} if decision.reason else {})

    def _rules(self, user: User, spec: Object) -> Object:
        namespace = spec.get("namespace")
        if not namespace:
            raise BadRequest("no namespace on request")
        held, faults = self._authz.rules(user, namespace)
        rules = [rule.as_dict() for rule in held]
        status: Object = {"resourceRules": [r for r in rules if "nonResourceURLs" not in r],
                          "nonResourceRules": [r for r in rules if "nonResourceURLs" in r], "incomplete": bool(faults)}
        return status | ({"evaluationError": ", ".join(faults)} if faults else {})


def _resource_attributes(user: User, asked: Object) -> Attributes:
    """`*` asks about any verb, group or resource: only a rule with `*` answers that."""
    requirements = ((asked.get("fieldSelector") or {}).get("requirements")) or ()
    pinned = [f"{r['key']}={r['values'][0]}" for r in requirements
              if r.get("operator") == "In" and len(r.get("values") or ()) == 1]
    return Attributes(user, asked.get("verb", ""), asked.get("group", ""), asked.get("version", ""),
                      asked.get("resource", ""), asked.get("subresource", ""), asked.get("namespace", ""),
                      asked.get("name", ""), fields=(asked.get("fieldSelector") or {}).get("rawSelector")
                      or ",".join(pinned))


def _subject(kind: str, spec: Object) -> User:
    if not spec.get("user") and not spec.get("groups"):
        raise Invalid.of(kind, "", [required("spec.user", "at least one of user or group must be specified")],
                         AUTHORIZATION)
    return User(spec.get("user", ""), spec.get("uid", ""), tuple(spec.get("groups") or ()),
                {k: list(v) for k, v in (spec.get("extra") or {}).items()})


def _api_version(request: Request) -> str:
    return request.resource.api_version if request.resource is not None else ""
